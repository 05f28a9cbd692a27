import numpy as np
import pytest
import torch

from sift_mm.sparsity import apply_masks_, selection, top_mask

DEVICES = ['cpu'] + ['cuda'] * torch.cuda.is_available()
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def plain(shape):
    return torch.empty(shape)


def channels_last(shape):
    return torch.empty(shape).to(memory_format=torch.channels_last)


def transposed(shape):
    return torch.empty(shape[::-1]).permute(*reversed(range(len(shape))))


def sliced(shape):
    return torch.empty(*shape[:-1], 2 * shape[-1])[..., ::2]


LAYOUTS = [
    ((), plain),
    ((0,), plain),
    ((7,), sliced),
    ((5, 6), plain),
    ((5, 6), transposed),
    ((5, 6), sliced),
    ((4, 3, 3, 3), plain),
    ((4, 3, 3, 3), channels_last),
    ((4, 3, 3, 3), transposed),
    ((4, 3, 1, 1), channels_last),
    ((4, 1, 3, 3), channels_last),
    ((1, 3, 2, 2), channels_last),
    ((2, 3, 2, 3, 2), transposed),
]


def bits(tensor):
    """Return the bit patterns in logical order."""
    dense = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)
    return dense.view(INTEGER[tensor.element_size()])


def awkward(layout, dtype, seed):
    """Draw random values with NaN, infinities and denormals."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(layout.shape, generator=generator)
    special = torch.tensor(
        [
            float('nan'),
            float('inf'),
            -float('inf'),
            -0.0,
            1e-40,
            -torch.finfo(dtype).tiny,
        ]
    )
    pick = torch.randint(0, 12, layout.shape, generator=generator)
    values = torch.where(pick < 6, special[pick % 6], values)
    result = torch.empty_like(layout, dtype=dtype)
    # empty_like forgets gaps between elements; keep them.
    if result.stride() != layout.stride():
        result = layout.to(dtype) if dtype != layout.dtype else layout
    return result.copy_(values)


def check_apply_masks(tensor, mask):
    expected = np.where(mask.cpu().numpy(), bits(tensor).numpy(), 0)
    pointer, stride, held = tensor.data_ptr(), tensor.stride(), mask.clone()
    assert apply_masks_([tensor], [mask]) is None
    np.testing.assert_array_equal(bits(tensor).numpy(), expected)
    assert (tensor.data_ptr(), tensor.stride()) == (pointer, stride)
    assert torch.equal(mask, held)


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('mask_layout', ['same', 'plain', 'channels_last'])
@pytest.mark.parametrize('shape, layout', LAYOUTS)
def test_values_inside_keep_their_bits_and_zero_is_outside(
    shape, layout, mask_layout, dtype, device
):
    if mask_layout == 'channels_last' and len(shape) != 4:
        mask_layout = 'plain'
    like = {'same': layout, 'plain': plain, 'channels_last': channels_last}[
        mask_layout
    ](shape)
    for seed, density in enumerate([0.0, 0.3, 0.7, 1.0]):
        tensor = awkward(layout(shape), dtype, seed).to(device)
        mask = (
            torch.empty_like(like, dtype=torch.bool)
            .copy_(torch.rand(shape) < density)
            .to(device)
        )
        check_apply_masks(tensor, mask)


# Selection by score ---------------------------------------------------------


def sorted_mask(score, k, allowed):
    """Select by a full sort: first of equals, NaN and -inf last."""
    values = score.double().numpy().ravel().copy()
    values[np.isnan(values)] = -np.inf
    places = np.flatnonzero(allowed.numpy())
    order = np.argsort(-values[places], kind='stable')
    mask = np.zeros(values.size, bool)
    mask[places[order[:k]]] = True
    return torch.from_numpy(mask).view(score.shape)


@pytest.mark.parametrize('elsewhere', [False, True])
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('layout', [plain, channels_last])
def test_the_highest_against_a_sort(layout, dtype, elsewhere, monkeypatch):
    if elsewhere:  # As on a GPU: without NumPy.
        monkeypatch.setattr(selection, '_is_on_cpu', lambda tensor: False)
    for seed in range(6):
        print(f'seed {seed}')
        score = awkward(layout((6, 5, 3, 3)), dtype, seed)
        score[::2] = (2 * score[::2]).round()  # Many are equal.
        allowed = torch.rand(score.shape) < (1.0, 0.4)[seed % 2]
        before = bits(score).clone()
        n = int(allowed.sum())
        for k in {0, 1, n // 10, n // 2, n - 1, n}:
            found = top_mask(score, k, allowed)
            assert torch.equal(found, sorted_mask(score, k, allowed))
        assert torch.equal(bits(score), before)
