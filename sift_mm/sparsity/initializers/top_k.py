"""Masks by magnitude."""

import torch
from torch import Tensor

from sift_mm.sparsity.initializers.initializer import (
    INITIALIZERS,
    Initializer,
)


@INITIALIZERS.register
class TopK(Initializer):
    """Initializer with the weights of largest magnitude."""

    def score(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """Return the magnitudes."""
        return weight.abs()
