"""Whether all ranks of a run hold the same masks."""

import zlib

import torch
from torch import distributed

from sift_mm.checkpoint.packing import pack
from sift_mm.errors import MistakenCall
from sift_mm.sparsity.masks import MaskSet


def world_size() -> int:
    """Processes that train together; 1 without a process group."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return 1


def fingerprint(masks: MaskSet) -> int:
    """The CRC-32 of all masks: differs if a bit does."""
    value = 0
    for mask in masks.values():
        value = zlib.crc32(pack(mask).numpy().data, value)
    return value


def check_agreement(masks: MaskSet, step: int) -> None:
    """Refuse to go on from masks that are not those of all ranks.

    One all-reduce of 8 bytes a rank, and none where there is one rank. To be
    called by all ranks at the same ``step``; all of them raise, so that none
    waits for another.

    Raises:
        RuntimeError: If those of a rank are others than those of rank 0.
    """
    ranks = world_size()
    if ranks == 1:
        return
    # Gradients are averaged on this device, so that the backend knows it.
    device = next(iter(masks.values())).device
    found = torch.zeros(ranks, dtype=torch.int64, device=device)
    found[distributed.get_rank()] = fingerprint(masks)
    distributed.all_reduce(found)
    values = found.tolist()
    others = [rank for rank in range(ranks) if values[rank] != values[0]]
    if others:
        raise MistakenCall(
            f'At step {step} the masks of rank {", ".join(map(str, others))} '
            'are not those of rank 0, and the networks have gone apart since '
            'the last mask update; resume from a checkpoint before that, and '
            'look for what changes masks or weights on one rank only.'
        )
