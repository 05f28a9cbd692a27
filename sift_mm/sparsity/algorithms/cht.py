"""Cannistraci-Hebb training."""

from dataclasses import replace

import torch
from torch import Tensor

from sift_mm.checkpoint.packing import count
from sift_mm.errors import UserError
from sift_mm.sparsity.algorithms.algorithm import (
    ALGORITHMS,
    Algorithm,
    LayerState,
)


@ALGORITHMS.register
class CHT(Algorithm):
    """Growth by topology, without gradient (Zhang et al., ICLR 2024).

    A linear layer is a bipartite graph. A missing link's score, CH3-L3, is the
    sum over its paths of length three of ``1 / sqrt((1 + e1) (1 + e2))``; e1
    and e2 count the links of the nodes in between to nodes on no such path.
    Links without path come last, at random. An update costs about outputs x
    active weights x inputs multiplications.
    """

    def check_layer(self, name: str, shape: tuple[int, ...]) -> None:
        """Refuse a weight that is not of a linear layer."""
        if len(shape) != 2:
            raise UserError(
                f'CHT grows the links of linear layers, and {name!r} has the '
                f"shape {shape}: choose layers by include, or algorithm='SET'."
            )

    @torch.no_grad()
    def update(self, layer: LayerState, fraction: float) -> Tensor:
        """Return the new mask; growth follows from what the drop leaves."""
        active = count(layer.mask)
        k = active - self.keep_count(layer, fraction)
        if k == 0:
            return layer.mask.clone()
        kept = self.structure.drop(self.drop_score(layer), layer.mask, k)
        scores = self.growth_score(replace(layer, mask=kept))
        return self.structure.grow(scores, kept, active - count(kept))

    def growth_score(self, layer: LayerState) -> Tensor:
        """Return CH3-L3 of each link; random numbers below 0 without path."""
        # Double precision, rounded at last: equal links tie on every CPU.
        links = layer.mask.to('cpu', torch.float64)
        outputs, inputs = links.sum(1), links.sum(0)
        # The two ends of a link share the neighbours that are on its paths.
        out_weight = (outputs - links @ links.T).clamp_(min=1).rsqrt_()
        in_weight = (inputs[:, None] - links.T @ links).clamp_(min=1).rsqrt_()
        rows = [
            out_weight[u] @ (links * (links[:, near] @ in_weight[near]))
            for u, near in enumerate(layer.mask.cpu())
        ]
        score = torch.stack(rows).float()
        drawn = torch.rand(score.shape, generator=layer.generator) - 1
        return score.where(score > 0, drawn).to(layer.weight.device)
