"""Walks, by counting what each output sees."""

import random

import pytest

from sift_mm.kernels import Geometry
from sift_mm.kernels.geometry import (
    MAX_PHASES,
    TILE_STRIDES,
    AxisGeometry,
    AxisWalk,
)


@pytest.mark.parametrize(
    'geometry, expected',
    [
        (Geometry.of((1, 1), dilation=(2, 3)), True),
        (Geometry.of((1, 1), (2, 1)), False),
        (Geometry.of((1, 1), padding=(0, 0, 1, 0)), False),
        (Geometry.of((1, 3)), False),
    ],
)
def test_pointwise(geometry, expected):
    assert geometry.pointwise is expected


def test_what_the_kernels_do_not_do():
    assert Geometry.of((7, 7), (4, 4)).why_not() is None
    assert '8 is larger than 7' in Geometry.of((3, 8)).why_not()
    assert '5 is larger than 4' in Geometry.of((3, 3), (1, 5)).why_not()


def test_large_dilations_take_no_class_of_outputs_each():
    for stride, dilation in ((1, 12), (1, 36), (2, 3), (3, 2)):
        axis = AxisGeometry(3, stride, dilation, dilation, dilation)
        assert len(list(axis.forward(64))) == 1
        assert len(list(axis.backward(64))) == stride


def seen(walk: AxisWalk) -> set[tuple[int, int, int]]:
    """Return (tap, output, input) of every step of a walk."""
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
        a = AxisGeometry(
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
