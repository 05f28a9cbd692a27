"""Base of the initializers of masks."""

import torch
from torch import Tensor

from sift_mm.registry import Registry
from sift_mm.sparsity.structures import Structure, Unstructured


class Initializer:
    """Base class of initializers, which select weights by a score."""

    def score(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """Return the score of each position; the highest become active.

        Floating point, of the weight's shape, on any device. The generator is
        on the CPU.
        """
        raise NotImplementedError

    @torch.no_grad()
    def mask(
        self,
        weight: Tensor,
        count: int,
        generator: torch.Generator,
        structure: Structure = Unstructured(),  # noqa: B008, has no state
    ) -> Tensor:
        """Return a mask of ``count`` active weights in the weight's order."""
        first = structure.first(self.score(weight, generator), count)
        return torch.empty_like(weight, dtype=torch.bool).copy_(first)


INITIALIZERS: Registry[Initializer] = Registry('mask initializer', Initializer)


def count_tolerance(size: int) -> int:
    """Return the allowed error of a count of nonzero weights.

    It is a thousandth of the layer's weights, at least one: other tools round
    differently, and a weight can be zero by chance.
    """
    return max(1, size // 1000)
