"""Random masks."""

import torch
from torch import Tensor

from sift_mm.sparsity.initializers.initializer import (
    INITIALIZERS,
    Initializer,
)


@INITIALIZERS.register
class Random(Initializer):
    """Initializer with uniformly random positions."""

    def score(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """Draw uniform random numbers on the CPU, the same for any device."""
        return torch.rand(weight.shape, generator=generator)
