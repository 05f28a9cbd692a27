"""Walks, by hand and by counting what each output sees."""

import random

import pytest

from sift_mm.kernels import Geometry
from sift_mm.kernels.geometry import (
    MAX_PHASES,
    TILE_STRIDES,
    AxisGeometry,
    AxisWalk,
)


def axis(
    kernel: int,
    stride: int = 1,
    before: int = 0,
    after: int = 0,
    dilation: int = 1,
) -> AxisGeometry:
    return AxisGeometry(kernel, stride, before, after, dilation)


def test_plain():
    # Outputs 0..4 of 5 inputs see inputs -1, 0 and 1 beside their own.
    (walk,) = axis(3, before=1, after=1).forward(5)
    assert walk == AxisWalk(0, 1, 5, 1, (-1,), ((0, 0), (0, 1), (0, 2)))
    assert walk.reach == 2
    assert walk.numbers() == [0, 1, 5, 1, 1, -1, 0, 0, 0, 0, 0, 0]


def test_plain_backward_is_flipped():
    # Input 0 got from outputs 1, 0 and -1 through taps 0, 1 and 2.
    (walk,) = axis(3, before=1, after=1).backward(5)
    assert walk == AxisWalk(0, 1, 5, 1, (-1,), ((0, 2), (0, 1), (0, 0)))


def test_stride_two_has_two_phases():
    # Output 0 sees -1, 0 and 1: even taps at -1, the odd one at 0.
    (walk,) = axis(3, stride=2, before=1, after=1).forward(8)
    assert walk == AxisWalk(0, 1, 4, 2, (-1, 0), ((0, 0), (1, 0), (0, 1)))


def test_stride_two_backward_has_two_classes():
    # Even inputs got from their half through the tap in the middle, odd ones
    # from both sides: input 1 from output 1 by tap 0 and 0 by tap 2.
    even, odd = axis(3, stride=2, before=1, after=1).backward(7)
    assert even == AxisWalk(0, 2, 4, 1, (0,), (None, (0, 0), None))
    assert odd == AxisWalk(1, 2, 3, 1, (0,), ((0, 1), None, (0, 0)))


def test_dilation_has_a_class_of_outputs_for_each_step():
    # With taps 2 apart, even outputs see even inputs alone.
    even, odd = axis(2, dilation=2).forward(7)
    assert even == AxisWalk(0, 2, 3, 2, (0,), ((0, 0), (0, 1)))
    assert odd == AxisWalk(1, 2, 2, 2, (1,), ((0, 0), (0, 1)))


def test_stride_and_dilation_with_a_common_divisor():
    # 4 o + 2 i: two phases, of steps of 4, and one class.
    (walk,) = axis(3, stride=4, dilation=2).forward(9)
    assert walk == AxisWalk(0, 1, 2, 4, (0, 2), ((0, 0), (1, 0), (0, 1)))


def test_inputs_between_strides_that_no_output_sees():
    walks = list(axis(1, stride=3).backward(7))
    assert [walk.seen for walk in walks] == [True, False, False]


def test_a_single_tap_has_no_dilation():
    geometry = Geometry.of((1, 3), dilation=(5, 5))
    assert (geometry.h.dilation, geometry.w.dilation) == (1, 5)


def test_padding_is_in_the_order_of_pad():
    geometry = Geometry.of((3, 3), padding=(1, 2, 3, 4))
    assert (geometry.w.before, geometry.w.after) == (1, 2)
    assert (geometry.h.before, geometry.h.after) == (3, 4)
    assert geometry.out_size(10, 20) == (15, 21)


@pytest.mark.parametrize(
    'geometry, expected',
    [
        (Geometry.of((1, 1)), True),
        (Geometry.of((1, 1), dilation=(2, 3)), True),
        (Geometry.of((1, 1), (2, 1)), False),
        (Geometry.of((1, 1), padding=(0, 0, 1, 0)), False),
        (Geometry.of((1, 3)), False),
    ],
)
def test_pointwise(geometry, expected):
    assert geometry.pointwise is expected


def test_what_the_kernels_do_not_do():
    assert Geometry.of((7, 7), (9, 9)).why_not() is None
    assert '8 is larger than 7' in Geometry.of((3, 8)).why_not()


def seen(walk: AxisWalk) -> set[tuple[int, int, int]]:
    """(tap, output, input) of all that a walk sees."""
    return {
        (
            tap,
            walk.out_first + walk.out_step * i,
            walk.in_first[place[0]] + walk.in_step * (i + place[1]),
        )
        for i in range(walk.count)
        for tap, place in enumerate(walk.taps)
        if place
    }


def test_random_walks_see_what_a_convolution_sees():
    seed = random.randrange(10**6)
    print(f'seed {seed}')
    source = random.Random(seed)
    for _ in range(2000):
        a = axis(
            source.randint(1, 7),
            source.randint(1, 9),
            source.randint(-2, 9),
            source.randint(-2, 9),
            source.randint(1, 9),
        )
        size = source.randint(1, 40)
        outputs = range(a.out_size(size))
        if not outputs:
            continue
        expected = {
            (tap, o, a.stride * o + a.dilation * tap - a.before)
            for o in outputs
            for tap in range(a.kernel)
        }
        walks = list(a.forward(size))
        assert sum(walk.count for walk in walks) == len(outputs), a
        assert set().union(*map(seen, walks)) == expected, a

        back = list(a.backward(size))
        assert sum(walk.count for walk in back) == size, a
        inside = {(t, o, i) for t, o, i in expected if 0 <= i < size}
        found = {
            (t, o, i)
            for walk in back
            for t, i, o in seen(walk)
            if o in outputs
        }
        assert found == inside, a
        for walk in (*walks, *back):
            assert walk.reach + 2 <= max(TILE_STRIDES)
            assert len(walk.in_first) <= MAX_PHASES
