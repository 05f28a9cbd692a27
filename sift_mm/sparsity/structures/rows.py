"""Base of the structures with a given number of active weights a row."""

from typing import Any

import torch
from torch import Tensor

from sift_mm.checkpoint.packing import count as count_active
from sift_mm.sparsity.selection import best_of_rows
from sift_mm.sparsity.structures.structure import Structure
from sift_mm.sparsity.structures.unstructured import Unstructured


class Rows(Structure):
    """Base of structures that give each row of a weight its own count.

    Drops rank a layer's weights together, like without structure; growth
    refills each row. So a weight moves within its row alone, but from rows
    with more than their count, as SRigL leaves them.
    """

    def rows(self, tensor: Tensor, fill: Any = 0) -> Tensor:
        """Return the rows of a weight, (rows, width), padded by ``fill``."""
        raise NotImplementedError

    def unrows(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """Return the weight of the rows, the inverse of :meth:`rows`."""
        raise NotImplementedError

    def row_counts(self, shape: torch.Size, count: int) -> Tensor:
        """Return the active weights of each row, int64, (rows,)."""
        raise NotImplementedError

    def drop(self, score: Tensor, mask: Tensor, k: int) -> Tensor:
        """Drop the layer's k highest scores, and those too many in a row."""
        kept = Unstructured().drop(score, mask, k)
        counts = self.row_counts(mask.shape, count_active(mask))
        return self.keep(score, kept, counts)

    def keep(self, score: Tensor, mask: Tensor, counts: Tensor) -> Tensor:
        """Return at most ``counts`` active weights of each row."""
        active = self.rows(mask).sum(1)
        counts = counts.to(active.device)
        if bool((active <= counts).all()):
            return mask
        score = (-score).masked_fill(~mask, -torch.inf)
        none = torch.zeros_like(mask)
        return self.fill(score, none, active.minimum(counts))

    def grow(self, score: Tensor, mask: Tensor, k: int) -> Tensor:
        """Fill each row with its best inactive weights."""
        counts = self.row_counts(mask.shape, count_active(mask) + k)
        return self.fill(score, mask, counts)

    def fill(self, score: Tensor, mask: Tensor, counts: Tensor) -> Tensor:
        """Return the weights of ``mask`` and the best others of each row.

        Args:
            score (Tensor): Floating point, the weight's shape.
            mask (Tensor): Bool, at most ``counts`` True in a row.
            counts (Tensor): Active weights of each row of the result.
        """
        score = score.float() if score.element_size() < 4 else score
        largest = torch.finfo(score.dtype).max
        score = score.nan_to_num(-torch.inf, largest, -torch.inf)
        score.masked_fill_(mask, torch.inf)
        best = best_of_rows(self.rows(score, -torch.inf), counts)
        return self.unrows(best, mask.shape)
