import numpy as np
import pytest
import torch

from sift_mm.sparsity import FromWeights, Random, TopK, generator_for

SHAPES = [(6,), (5, 7), (8, 6, 1, 1), (8, 6, 3, 3)]


def weight(shape, seed=0, channels_last=False, dtype=torch.float32):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if channels_last:
        values = values.to(memory_format=torch.channels_last)
    return values.to(dtype)


@pytest.mark.parametrize('cls', [Random, TopK, FromWeights])
def test_memory_order_is_the_weights_and_does_not_matter(cls):
    plain = weight((8, 6, 3, 3)) * (weight((8, 6, 3, 3), seed=1) > 0)
    count = int(plain.count_nonzero())
    last = plain.to(memory_format=torch.channels_last)
    masks = [
        cls().mask(w, count, generator_for(0, 0, 'a')) for w in (plain, last)
    ]
    assert torch.equal(*masks)
    assert masks[0].stride() == plain.stride()
    assert masks[1].stride() == last.stride()


@pytest.mark.parametrize(
    'dtype', [torch.float32, torch.float64, torch.bfloat16]
)
@pytest.mark.parametrize('shape', SHAPES)
def test_top_k_takes_the_largest_magnitudes(shape, dtype):
    values = weight(shape, dtype=dtype)
    count = values.numel() // 3
    mask = TopK().mask(values, count, generator_for(0, 0, 'a'))
    # Equal magnitudes may be exchanged: values are compared, not positions.
    magnitude = values.abs().double().numpy().ravel()
    expected = np.sort(magnitude)[-count:]
    found = np.sort(values.abs().double()[mask].numpy())
    np.testing.assert_array_equal(found, expected)


def test_from_weights_reads_the_pattern():
    values = torch.tensor([[0.0, -1.0, 2.0], [0.0, 0.0, -1e-30]])
    mask = FromWeights().mask(values, 3, generator_for(0, 0, 'a'))
    assert mask.tolist() == [[False, True, True], [False, False, True]]


# One of a thousand weights may differ, and one in any case.
@pytest.mark.parametrize('shape, may', [((40, 50), 2), ((5, 6), 1)])
@pytest.mark.parametrize('sign', [-1, 1])
def test_from_weights_compares_the_count(shape, may, sign):
    def mask(found):
        values = torch.zeros(shape)
        values.view(-1)[:found] = 1.0
        return FromWeights().mask(values, 20, generator_for(0, 0, 'a'))

    assert int(mask(20 + sign * may).sum()) == 20 + sign * may
    found = 20 + sign * (may + 1)
    words = rf'shape \({shape[0]}, {shape[1]}\) has {found} non-zero .* for 20'
    with pytest.raises(ValueError, match=words + '.*TopK'):
        mask(found)
