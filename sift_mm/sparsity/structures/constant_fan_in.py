"""Constant fan-in."""

from math import prod
from typing import Any

import torch
from torch import Tensor

from sift_mm.sparsity.structures.rows import Rows
from sift_mm.sparsity.structures.structure import STRUCTURES


@STRUCTURES.register
class ConstantFanIn(Rows):
    """Structure with the same number of active weights in each filter.

    Where SRigL has ablated filters, the others share their weights: fan-ins
    then differ by at most one.
    """

    def fit(self, shape: tuple[int, ...], count: int) -> int:
        """Return the next multiple of the filters, at least one each."""
        fan_in = round(count / shape[0])
        return shape[0] * min(max(fan_in, 1), prod(shape[1:]))

    def row_counts(self, shape: torch.Size, count: int) -> Tensor:
        """Return the fan-ins; the first filters have the remainder."""
        fan_in, more = divmod(count, shape[0])
        return fan_in + (torch.arange(shape[0]) < more).long()

    def has(self, mask: Tensor) -> bool:
        """Return True if the fan-ins of active filters differ by one."""
        fan_ins = self.rows(mask).sum(1)
        live = fan_ins[fan_ins > 0]
        return len(live) > 0 and bool(live.max() - live.min() <= 1)

    def rows(self, tensor: Tensor, fill: Any = 0) -> Tensor:
        """Return the filters."""
        return tensor.reshape(len(tensor), -1)

    def unrows(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """Return the weight of the filters."""
        return rows.reshape(shape)
