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

    A linear layer is a bipartite graph of inputs and outputs. The score of a
    missing link is CH3-L3 of the mask that the drop leaves: the sum over its
    paths of length three of ``1 / sqrt((1 + e1) (1 + e2))``, where e1 and e2
    count the links of the two nodes in between to nodes on no such path.
    Links without a path are grown last, at random. An update costs about
    outputs x active weights x inputs multiplications.
    """

    def check_layer(self, name: str, shape: tuple[int, ...]) -> None:
        """Refuse a weight that is not of a linear layer."""
        if len(shape) != 2:
            raise UserError(
                f'CHT grows the links of linear layers, and {name!r} has the '
                f'shape {shape}: choose linear layers by include and exclude, '
                "or algorithm='SET'."
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
        links = layer.mask.to('cpu', torch.float32)
        outputs, inputs = links.sum(1), links.sum(0)
        # Of a path's node, the links to nodes on paths too are those that it
        # shares with the other end of the link.
        out_weight = (outputs - links @ links.T).clamp_(min=1).rsqrt_()
        in_weight = (inputs[:, None] - links.T @ links).clamp_(min=1).rsqrt_()
        score = torch.stack(
            [
                (out_weight[u, :, None] * links)
                .mul_(links[:, near] @ in_weight[near])
                .sum(0)
                for u, near in enumerate(layer.mask.cpu())
            ]
        )
        drawn = torch.rand(score.shape, generator=layer.generator) - 1
        return score.where(score > 0, drawn).to(layer.weight.device)
