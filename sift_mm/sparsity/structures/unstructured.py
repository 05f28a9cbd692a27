"""Masks without structure."""

import torch
from torch import Tensor

from sift_mm.checkpoint.packing import count as count_active
from sift_mm.sparsity.selection import Candidates
from sift_mm.sparsity.structures.structure import STRUCTURES, Structure


@STRUCTURES.register
class Unstructured(Structure):
    """Structure without constraint; among equal scores the first win."""

    def drop(self, score: Tensor, mask: Tensor, k: int) -> Tensor:
        """Drop the k highest scores among active weights."""
        kept = mask.clone(memory_format=torch.contiguous_format)
        kept.view(-1)[Candidates.where(score, mask).best(k)] = False
        return kept

    def prune(self, score: Tensor, mask: Tensor, count: int) -> Tensor:
        """Keep the ``count`` lowest scores among active weights."""
        # Twice as fast as a selection among all positions.
        return self.drop(score, mask, count_active(mask) - count)

    def grow(self, score: Tensor | Candidates, mask: Tensor, k: int) -> Tensor:
        """Grow the k highest scores among inactive weights."""
        if isinstance(score, Candidates):
            free = score.within(~mask)
        else:
            free = Candidates.where(score, ~mask)
        grown = mask.clone(memory_format=torch.contiguous_format)
        grown.view(-1)[free.best(k)] = True
        return grown

    def shortlist(self, score: Tensor, mask: Tensor, k: int) -> Candidates:
        """Return the candidates for the k best inactive weights.

        These are the k best inactive weights, and active weights of equal or
        higher score, which may be dropped and grown again.
        """
        free = Candidates.where(score, ~mask)
        if len(free.places) <= k:
            return Candidates.where(score, torch.ones_like(mask))
        chosen = free.best(k)
        lowest = score.flatten()[chosen]
        floor = lowest.nan_to_num(-torch.inf, torch.inf, -torch.inf).min()
        wanted = (mask & ~(score < floor)).contiguous()  # NaN stays in.
        wanted.view(-1)[chosen] = True
        return Candidates.where(score, wanted)

    def has(self, mask: Tensor) -> bool:
        """Return True: any mask has this structure."""
        return True
