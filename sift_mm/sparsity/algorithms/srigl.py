"""Structured RigL."""

import torch
from torch import Tensor

from sift_mm.checkpoint.packing import count
from sift_mm.errors import UserError
from sift_mm.sparsity.algorithms.algorithm import (
    ALGORITHMS,
    Growth,
    LayerState,
)
from sift_mm.sparsity.algorithms.rigl import RigL
from sift_mm.sparsity.selection import top_mask
from sift_mm.sparsity.structures import (
    ConstantFanIn,
    StructureLike,
    Unstructured,
)
from sift_mm.validation import Share


@ALGORITHMS.register
class SRigL(RigL):
    """RigL with constant fan-in that ablates filters (arXiv:2305.02299).

    Salient weights are those that an update keeps, and the k inactive ones of
    largest gradient. A filter with too few of them is ablated, as long as it
    has; the others take its weights: fan-ins may differ by one.

    Args:
        salient (float): Least share of the fan-in, gamma; 0 ablates none.
        structure (str | dict | Structure): 'ConstantFanIn', no other.
    """

    def __init__(
        self, salient: Share = 0.3, structure: StructureLike = 'ConstantFanIn'
    ) -> None:
        super().__init__(structure)
        self.salient = salient
        if not isinstance(self.structure, ConstantFanIn):
            raise UserError("SRigL trains structure='ConstantFanIn' alone.")

    def exchange(self, layer: LayerState, growth: Growth) -> Tensor:
        """Return the new mask, with a fan-in for the filters that stay."""
        if growth.scores is None or not self.salient:
            return super().exchange(layer, growth)
        assert isinstance(self.structure, ConstantFanIn)
        mask, active, rows = layer.mask, count(layer.mask), self.structure.rows
        score = self.drop_score(layer)
        kept = Unstructured().drop(score, mask, growth.k)
        k = min(growth.k, mask.numel() - active)
        salient = rows(kept | top_mask(growth.scores, k, ~mask)).sum(1)
        least = max(1, int(self.salient * (active // len(mask))))
        room = -(-active // rows(mask).shape[1])
        stay = max(int((salient >= least).sum()), room)
        order = salient.argsort(descending=True, stable=True)
        fan_ins = torch.zeros_like(salient)
        fan_ins[order[:stay]] = active // stay
        fan_ins[order[: active % stay]] += 1
        kept = self.structure.keep(score, kept, fan_ins)
        return self.structure.fill(growth.scores, kept, fan_ins)
