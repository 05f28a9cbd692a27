"""Selection of values by masks, the kernel of every masked step."""

from collections.abc import Iterable

import torch
from torch import Tensor

from sift_mm.checkpoint.packing import count
from sift_mm.kernels import masks as kernels
from sift_mm.kernels import why_unavailable

# Integers as wide as a floating-point type: a bit pattern times 0 or 1 is a
# selection, so that a NaN outside the mask becomes 0 and not NaN.
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def _flat_pair(tensor: Tensor, mask: Tensor) -> tuple[Tensor, Tensor] | None:
    """Both tensors as 1-D views in one memory order, if there is one."""
    if tensor.is_contiguous() and mask.is_contiguous():
        return tensor.view(-1), mask.view(-1)
    if tensor.dim() == 4 and all(
        t.is_contiguous(memory_format=torch.channels_last)
        for t in (tensor, mask)
    ):
        flat = [t.permute(0, 2, 3, 1).view(-1) for t in (tensor, mask)]
        return flat[0], flat[1]
    return None


def _for_kernels(tensor: Tensor, mask: Tensor) -> tuple[Tensor, Tensor] | None:
    """Both as the kernels take them, None if they do not."""
    if tensor.device.type != 'cpu' or why_unavailable() is not None:
        return None
    return _flat_pair(tensor, mask)


@torch.no_grad()
def keep_only_(tensors: Iterable[Tensor], masks: Iterable[Tensor]) -> None:
    """Set to zero, in place, what lies outside the masks.

    Values inside are untouched bit for bit; values outside become +0, also
    where they were NaN or infinite. No allocation that grows with the
    tensors and no host synchronisation. Masks are bool, of the shapes and on
    the devices of the floating-point tensors.
    """
    on_device: tuple[list[Tensor], list[Tensor]] = ([], [])
    for tensor, mask in zip(tensors, masks, strict=True):
        bits = tensor.view(_BITS[tensor.element_size()])
        if bits.device.type != 'cpu':
            on_device[0].append(bits)
            on_device[1].append(mask)
        elif pair := _for_kernels(bits, mask):
            kernels.keep(*pair)
        else:
            bits.mul_(mask)
    if on_device[0]:
        # One call: types differ, so that it is a kernel a tensor, but they
        # are launched without Python in between.
        torch._foreach_mul_(*on_device)


def meet_(mask: Tensor, other: Tensor) -> tuple[int, int]:
    """Leave in a mask, in place, what is active in another too.

    Returns:
        tuple[int, int]: How many are left, and how many the other one has.
    """
    if pair := _for_kernels(mask, other):
        return kernels.meet_(*pair)
    mask &= other
    return count(mask), count(other)
