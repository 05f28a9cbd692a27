"""Masking of a layer's numbers in place."""

import ctypes

import torch
from torch import Tensor

from . import build
from .build import pointer


def keep(numbers: Tensor, mask: Tensor) -> None:
    """Set numbers outside a mask to zero, in place.

    Args:
        numbers: Of 2, 4 or 8 bytes each, shape (n,), contiguous.
        mask: Bool of shape (n,), contiguous.
    """
    n = len(mask)
    build.library().sift_keep(
        pointer(mask),
        ctypes.c_int64(n),
        ctypes.c_int64(numbers.element_size()),
        # As many as PyTorch takes.
        ctypes.c_int64(torch.get_num_threads() if n > 1 << 15 else 1),
        pointer(numbers),
    )
