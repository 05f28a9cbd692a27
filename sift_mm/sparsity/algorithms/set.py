"""Sparse Evolutionary Training."""

import torch
from torch import Tensor

from sift_mm.sparsity.algorithms.algorithm import (
    ALGORITHMS,
    Algorithm,
    LayerState,
)


@ALGORITHMS.register
class SET(Algorithm):
    """Sparse Evolutionary Training: random growth (Mocanu et al. 2018)."""

    def growth_score(self, layer: LayerState) -> Tensor:
        """Draw uniform random numbers."""
        shape = layer.weight.shape
        drawn = torch.rand(shape, generator=layer.generator)
        return drawn.to(layer.weight.device)
