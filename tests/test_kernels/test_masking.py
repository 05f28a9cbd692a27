"""Masking in place, against NumPy's."""

import numpy as np
import pytest
import torch

from sift_mm.kernels.masking import keep

INF = float('inf')
SIZES = [1, 7, 8, 63, 64, 65, 1000, (1 << 16) + 4093]


@pytest.fixture(params=[1, 2, 5])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def drawn(n, seed):
    """Return values with all that is no ordinary number, and a mask."""
    print(f'seed {seed}')
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n, generator=generator)
    special = torch.tensor([float('nan'), INF, -INF, -0.0, 1e-40, 1.0, -1.0])
    pick = torch.randint(0, 21, (n,), generator=generator)
    values = torch.where(pick < 7, special[pick % 7], values)
    return values, torch.rand(n, generator=generator) < 0.3


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
