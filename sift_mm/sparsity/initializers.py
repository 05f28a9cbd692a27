"""Initializers of masks: random, by magnitude, or from the weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from sift_mm.errors import UserError
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
InitializerLike = Annotated[
    str | Mapping[str, Any] | Initializer, INITIALIZERS
]


def count_tolerance(size: int) -> int:
    """Return the allowed error of a count of nonzero weights.

    It is a thousandth of the layer's weights, at least one: other tools round
    differently, and a weight can be zero by chance.
    """
    return max(1, size // 1000)


@INITIALIZERS.register
@dataclass(frozen=True)
class Random(Initializer):
    """Initializer with uniformly random positions."""

    def score(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """Draw uniform random numbers on the CPU, the same for any device."""
        return torch.rand(weight.shape, generator=generator)


@INITIALIZERS.register
@dataclass(frozen=True)
class TopK(Initializer):
    """Initializer with the weights of largest magnitude."""

    def score(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """Return the magnitudes."""
        return weight.abs()


@INITIALIZERS.register
@dataclass(frozen=True)
class FromWeights(Initializer):
    """Initializer with the nonzero weights of a pruned network.

    It cannot resume a run, since weights that have just been grown are zero.
    """

    @torch.no_grad()
    def mask(
        self,
        weight: Tensor,
        count: int,
        generator: torch.Generator,
        structure: Structure = Unstructured(),  # noqa: B008
    ) -> Tensor:
        """Return the mask of the nonzero weights.

        Raises:
            ValueError: If their number differs from ``count`` by more than
                :func:`count_tolerance`, or they violate the structure.
        """
        mask = weight != 0
        found = int(mask.count_nonzero())
        if abs(found - count) > count_tolerance(weight.numel()):
            raise UserError(
                f'A weight of shape {tuple(weight.shape)} has {found} '
                f'non-zero entries where the sparsity asks for {count}; '
                'load a network pruned to that sparsity, or choose the '
                "initial mask 'TopK' or 'Random'."
            )
        if not structure.holds(mask, count):
            raise UserError(
                f'The non-zero entries of a weight of shape '
                f'{tuple(weight.shape)} are not of structure='
                f'{type(structure).__name__!r}; load a network pruned so, or '
                "choose the initial mask 'TopK' or 'Random'."
            )
        return mask
