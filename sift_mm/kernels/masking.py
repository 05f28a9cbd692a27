"""Masking of a tensor in place."""

import torch
from torch import Tensor

from .build import call


def keep(numbers: Tensor, mask: Tensor) -> None:
    """Set numbers outside a mask to zero, in place.

    Args:
        numbers: 2, 4 or 8 bytes each, shape (n,), contiguous.
        mask: Bool, shape (n,), contiguous.
    """
    n, size = len(mask), numbers.element_size()
    # Starting threads costs more than masking a small tensor.
    threads = torch.get_num_threads() if n > 1 << 15 else 1
    call('sift_keep', mask, n, size, threads, numbers)
