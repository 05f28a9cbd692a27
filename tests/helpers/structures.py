"""A structure of masks for tests: n of m consecutive inputs of a filter."""

import pytest
import torch
from torch import Tensor

from sift_mm.sparsity import STRUCTURES, Structure


class NofM(Structure):
    """Exactly n of m consecutive weights of a flattened filter are active."""

    def __init__(self, n: int = 2, m: int = 4) -> None:
        self.n, self.m = n, m

    def fit(self, shape: tuple[int, ...], count: int) -> int:
        """Return the only possible count."""
        return torch.Size(shape).numel() // self.m * self.n

    def drop(self, score: Tensor, mask: Tensor, k: int) -> Tensor:
        """Drop any active weights; growth refills their groups."""
        flat = score.flatten().masked_fill(~mask.flatten(), -torch.inf)
        kept = mask.flatten().clone()
        kept[flat.topk(k).indices] = False
        return kept.view(mask.shape)

    def grow(self, score: Tensor, mask: Tensor, k: int) -> Tensor:
        """Fill each group with its best inactive weights."""
        groups = mask.reshape(-1, self.m)
        ranked = score.reshape(-1, self.m).float().clone()
        ranked[groups] = torch.inf
        best = ranked.topk(self.n).indices
        return (
            torch.zeros_like(groups).scatter_(1, best, True).view(mask.shape)
        )


def holds_groups(mask: Tensor, n: int = 2, m: int = 4) -> bool:
    """Return True if each group has n active weights."""
    return bool((mask.reshape(-1, m).sum(1) == n).all())


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the structure a name during a test."""
    monkeypatch.setattr(STRUCTURES, '_classes', dict(STRUCTURES._classes))
    STRUCTURES.register(NofM)
