"""Selection of values by masks, the kernel of every masked step."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from sift_mm.sparsity.pieces import by_pieces

# Integers as wide as a floating-point type: a bit pattern times 0 or 1 is a
# selection, so that a NaN outside the mask becomes 0 and not NaN.
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
# Elements a piece on the CPU: masks are widened piece by piece in cache. A
# mixed-type multiplication of whole tensors widens them through memory and
# takes several times longer (benchmarks/masked_step.py). Smaller pieces are
# no faster, and threads have to wait for each other after every one of them:
# where data loaders compete for the cores, that is what costs.
_PIECE = 1 << 20


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
        elif (pair := _flat_pair(bits, mask)) is not None:
            _multiply_in_pieces_(*pair)
        else:
            bits.mul_(mask)
    if on_device[0]:
        # One call: types differ, so that it is a kernel a tensor, but they
        # are launched without Python in between.
        torch._foreach_mul_(*on_device)


def _multiply_in_pieces_(bits: Tensor, mask: Tensor) -> None:
    buffer = bits.new_empty(min(_PIECE, bits.numel()))
    for piece, mask_piece in zip(
        bits.split(_PIECE), mask.split(_PIECE), strict=True
    ):
        factor = buffer[: piece.numel()]
        factor.copy_(mask_piece)
        piece.mul_(factor)


@torch.no_grad()
def keep_only_together_(tensors: Sequence[Tensor], mask: Tensor) -> None:
    """:func:`keep_only_` for tensors of one mask, which is widened once.

    Slower where nothing else runs, and much faster where other programs
    compete for the cores: no thread waits for another.
    """
    pairs = [
        _flat_pair(tensor.view(_BITS[tensor.element_size()]), mask)
        for tensor in tensors
    ]
    flat = [pair for pair in pairs if pair is not None]
    if mask.device.type != 'cpu' or len(flat) < len(tensors):
        keep_only_(tensors, [mask] * len(tensors))
        return

    def piece(where: slice) -> None:
        factors: dict[torch.dtype, Tensor] = {}
        for bits, active in flat:
            if bits.dtype not in factors:
                factors[bits.dtype] = active[where].to(bits.dtype)
            bits[where].mul_(factors[bits.dtype])

    by_pieces(piece, mask.numel())
