"""Comparison of masks between the ranks of a run."""

import zlib

import torch
from torch import distributed

from sift_mm.checkpoint.packing import pack
from sift_mm.errors import UserCallError
from sift_mm.sparsity.masks import MaskSet


def world_size() -> int:
    """Return the number of processes, 1 without a process group."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return 1


def fingerprint(masks: MaskSet, seed: int = 0) -> int:
    """Return the CRC-32 of all masks and the seed."""
    value = zlib.crc32(str(seed).encode()) if seed else 0
    for mask in masks.values():
        value = zlib.crc32(pack(mask).numpy().data, value)
    return value


def check_agreement(masks: MaskSet, step: int, seed: int = 0) -> None:
    """Refuse masks that differ between ranks.

    All ranks call this at the same step. It costs one all-reduce of 8 bytes
    per rank. All ranks raise together, so that no rank waits.

    Args:
        masks (MaskSet): Masks of this rank.
        step (int): Number of the next optimizer step, counted from 1.
        seed (int): Seed of later masks, compared too.

    Raises:
        RuntimeError: If masks or seed of a rank differ from those of rank 0.
    """
    ranks = world_size()
    if ranks == 1:
        return
    # The backend averages gradients on this device, so it supports it.
    device = next(iter(masks.values())).device
    found = torch.zeros(ranks, dtype=torch.int64, device=device)
    found[distributed.get_rank()] = fingerprint(masks, seed)
    distributed.all_reduce(found)
    values = found.tolist()
    others = [rank for rank in range(ranks) if values[rank] != values[0]]
    if others:
        raise UserCallError(
            f'At step {step} the masks of rank {", ".join(map(str, others))} '
            'are not those of rank 0: give all ranks one seed and the same '
            'weights before masks are drawn. If they agreed before, resume '
            'from an earlier checkpoint, and look for code that changes masks '
            'or weights on one rank only.'
        )
