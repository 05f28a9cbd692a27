"""The two kernels of mask training: select values, select positions."""

from collections.abc import Iterable

import torch
from torch import Tensor

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
    tensors and no host synchronisation.

    Args:
        tensors (Iterable[Tensor]): Floating-point tensors of any shape.
        masks (Iterable[Tensor]): Bool tensors of the same shapes and on the
            same devices.
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


def top_indices(score: Tensor, k: int) -> Tensor:
    """Positions of the k largest values, see :func:`top_values`."""
    return top_values(score, k)[1]


def top_values(score: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest values and their positions, exactly k, in linear time.

    Among equal values which ones are taken is deterministic but not
    specified. A sample of the scores gives a bound that most positions fall
    below, so that the selection runs over few candidates; where the sample
    misleads, it runs over all.

    Args:
        score (Tensor): Any shape, without NaN.
        k (int): How many, at most ``score.numel()``.

    Returns:
        tuple[Tensor, Tensor]: Shape (k,) each: values, and int64 positions in
        the flattened score, in no particular order.
    """
    score = score.flatten()
    stride = score.numel() >> 16
    if stride > 1 and k < score.numel() // 4:
        sample = score[::stride]
        # Half as many again as needed, and a few for the error of sampling.
        rank = int(1.5 * k / stride) + 32
        if rank < sample.numel():
            bound = sample.topk(rank).values[-1]
            candidates = (score >= bound).nonzero().squeeze(1)
            if candidates.numel() >= k:
                values, best = score[candidates].topk(k, sorted=False)
                return values, candidates[best]
    values, best = score.topk(k, sorted=False)
    return values, best
