"""Comparison of masks between the ranks of a run."""

import zlib
from typing import Any

import torch
from torch import distributed

from sift_mm.checkpoint.packing import pack
from sift_mm.errors import UserCallError
from sift_mm.sparsity.masks import MaskSet
from sift_mm.sparsity.processes import world_size


def fingerprint(masks: MaskSet, plan: tuple[Any, ...] = ()) -> int:
    """Return the CRC-32 of all masks and the plan: differs if a bit does."""
    value = zlib.crc32(repr(plan).encode()) if plan else 0
    for mask in masks.values():
        value = zlib.crc32(pack(mask).numpy().data, value)
    return value


def check_agreement(
    masks: MaskSet, step: int, plan: tuple[Any, ...] = ()
) -> None:
    """Refuse masks that differ between ranks.

    All ranks call this at the same step. It costs one all-reduce of 8 bytes
    per rank. All ranks raise together, so that no rank waits.

    Args:
        masks (MaskSet): Masks of this rank.
        step (int): Optimizer step that is to be taken, counted from 1.
        plan (tuple): Seed and schedule of later masks, compared too.

    Raises:
        RuntimeError: If masks or plan of a rank are not those of rank 0.
    """
    ranks = world_size()
    if ranks == 1:
        return
    # The backend averages gradients on this device, so it supports it.
    device = next(iter(masks.values())).device
    found = torch.zeros(ranks, dtype=torch.int64, device=device)
    found[distributed.get_rank()] = fingerprint(masks, plan)
    distributed.all_reduce(found)
    values = found.tolist()
    others = [rank for rank in range(ranks) if values[rank] != values[0]]
    if others:
        raise UserCallError(
            f'At step {step} the masks of rank {", ".join(map(str, others))} '
            'are not those of rank 0: give all ranks one seed, one schedule '
            'and the same weights before masks are drawn. If they agreed '
            'before, resume from a checkpoint of that time, and look for code '
            'that changes masks or weights on one rank only.'
        )
