"""Passes over a layer's mask, against NumPy's."""

import numpy as np
import pytest
import torch

from sift_mm.kernels.masks import divide, join, keep

INF = float('inf')
SIZES = [1, 7, 8, 63, 64, 65, 1000, (1 << 16) + 4093]


@pytest.fixture(params=[1, 2, 5])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def drawn(n, seed):
    """Values with all that is no ordinary number, and a mask."""
    print(f'seed {seed}')
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, generator=generator)
    special = torch.tensor([float('nan'), INF, -INF, -0.0, 1e-40, 1.0, -1.0])
    pick = torch.randint(0, 21, (n,), generator=generator)
    values = torch.where(pick < 7, special[pick % 7], values)
    return values, torch.rand(n, generator=generator) < 0.3


@pytest.mark.parametrize('n', SIZES)
@pytest.mark.parametrize('sign', [0, 1, -1])
@pytest.mark.parametrize('low, high', [(0.5, 1.0), (-INF, INF), (1.0, 1.0)])
def test_scores_are_divided_by_a_bracket(n, sign, low, high, threads):
    values, mask = drawn(n, n)
    low, high = (low, high) if sign >= 0 else (-high, -low)
    scores = sign * values.abs() if sign else values
    for given, active in [(mask, True), (mask, False), (None, False)]:
        found = divide(values, sign, given, active, low, high)
        may = np.ones(n, bool) if given is None else (mask == active).numpy()
        higher = may & (scores > high).numpy()
        within = may & ((scores >= low) & ~(scores > high)).numpy()
        bits = np.packbits(higher, bitorder='little')
        np.testing.assert_array_equal(found.above, bits)
        assert found.higher == higher.sum()
        np.testing.assert_array_equal(found.places, within.nonzero()[0])
        np.testing.assert_array_equal(found.values, scores[within])
        count, allowed = found.among(mask, active)
        now = (mask == active).numpy()
        assert count == (higher & now).sum()
        np.testing.assert_array_equal(allowed, now[within])


@pytest.mark.parametrize('n', SIZES)
@pytest.mark.parametrize('active', [True, False])
def test_the_highest_of_those_active_or_not_are_flipped(n, active, threads):
    # Few values, so that many are equal.
    values, mask = drawn(n, n)
    values = values.nan_to_num(0).clamp(-2, 2).mul(4).round()
    found = divide(values, 0, None, False, -4.0, 4.0)
    may = (mask == active).numpy().nonzero()[0]
    order = may[np.argsort(-values.numpy()[may], kind='stable')]
    higher, within = found.among(mask, active)
    for need in {0, 1, within.sum() // 2, within.sum()}:
        if need > within.sum():
            continue
        flipped = mask.clone()
        found.flip_(flipped, int(higher + need), active)
        expected = mask.clone()
        expected[order[: higher + need]] = not active
        assert torch.equal(flipped, expected)


def test_parts_are_joined():
    values, mask = drawn(1000, 0)
    parts = [slice(0, 8), slice(8, 600), slice(600, 1000)]
    joined = join(
        [divide(values[p], 1, mask[p], True, 0.5, 1.0) for p in parts]
    )
    whole = divide(values, 1, mask, True, 0.5, 1.0)
    for one, other in zip(
        vars(joined).values(), vars(whole).values(), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize('n', SIZES)
@pytest.mark.parametrize(
    'kind', [torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
def test_what_is_outside_a_mask_becomes_zero(n, kind, threads):
    values, mask = drawn(n, n)
    values = values.to(kind)
    integer = {2: np.int16, 4: np.int32, 8: np.int64}[kind.itemsize]
    bits = values.view(getattr(torch, integer.__name__)).numpy().copy()
    keep(values, mask)
    after = values.view(getattr(torch, integer.__name__)).numpy()
    np.testing.assert_array_equal(after, np.where(mask, bits, 0))


def test_strided_scores_are_read_in_order():
    values, mask = drawn(2000, 0)
    mask = mask[:1000]
    found = divide(values[::2], 0, mask, True, 0.0, 1.0)
    whole = divide(values[::2].clone(), 0, mask, True, 0.0, 1.0)
    np.testing.assert_array_equal(found.places, whole.places)
    assert torch.equal(found.above, whole.above)
