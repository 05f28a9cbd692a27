"""Masks as NumPy packs and counts them: several times faster on the CPU."""

import numpy as np
import torch
from torch import Tensor


def pack(mask: Tensor) -> Tensor:
    """The bits of n elements, the first in the highest bit of a byte.

    Returns:
        Tensor: uint8, shape (ceil(n / 8),), in main memory; what fills the
        last byte is 0.
    """
    return torch.from_numpy(np.packbits(mask.flatten().cpu().numpy()))


def unpack(bits: Tensor, count: int) -> Tensor:
    """What :func:`pack` packed: bool, shape (count,), in main memory."""
    flat = np.unpackbits(bits.numpy(), count=count)
    return torch.from_numpy(flat.view(np.bool_))


def count(mask: Tensor | np.ndarray) -> int:
    """How many entries of a bool tensor or array are True."""
    if isinstance(mask, Tensor) and mask.device.type != 'cpu':
        return int(mask.count_nonzero())
    return int(np.count_nonzero(np.asarray(mask)))
