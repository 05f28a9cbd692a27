"""Processes of a distributed run."""

import torch
from torch import Tensor, distributed


def world_size() -> int:
    """Return the number of processes, 1 without a process group."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return 1


@torch.no_grad()
def mean_of_ranks_(tensors: list[Tensor]) -> list[Tensor]:
    """Average tensors over all ranks, in place."""
    if (ranks := world_size()) > 1:
        for tensor in tensors:
            distributed.all_reduce(tensor)
            tensor /= ranks
    return tensors


def take_first_(masks: list[Tensor]) -> None:
    """Set bool tensors to those of rank 0, in place."""
    if world_size() > 1:
        for mask in masks:
            bits = mask.byte().contiguous()
            distributed.broadcast(bits, 0)
            mask.copy_(bits)
