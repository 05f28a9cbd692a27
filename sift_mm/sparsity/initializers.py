"""First masks: random, by magnitude, or read off the weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from sift_mm.errors import UserError
from sift_mm.registry import Registry
from sift_mm.sparsity.structures import Structure, Unstructured


class Initializer:
    """Draws the first mask of a layer: a score, and the highest of it."""

    def score(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """How much each position deserves to be active at first.

        Floating point, of the weight's shape, on any device; ``generator``,
        the source of randomness, is on the CPU.
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
        """A bool mask in the weight's memory order, ``count`` entries True."""
        first = structure.first(self.score(weight, generator), count)
        return torch.empty_like(weight, dtype=torch.bool).copy_(first)


INITIALIZERS: Registry[Initializer] = Registry('mask initializer', Initializer)
InitializerLike = Annotated[
    str | Mapping[str, Any] | Initializer, INITIALIZERS
]


def count_tolerance(size: int) -> int:
    """How far a count read off the weights may be from the one asked for.

    One in a thousand of the layer's weights, at least one: another tool
    rounds otherwise, and a weight can be zero by chance.
    """
    return max(1, size // 1000)


@INITIALIZERS.register
@dataclass(frozen=True)
class Random(Initializer):
    """Exactly ``count`` positions, drawn uniformly."""

    def score(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """Uniform random numbers, on the CPU: the same on every device."""
        return torch.rand(weight.shape, generator=generator)


@INITIALIZERS.register
@dataclass(frozen=True)
class TopK(Initializer):
    """The ``count`` weights of largest magnitude."""

    def score(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """Magnitudes."""
        return weight.abs()


@INITIALIZERS.register
@dataclass(frozen=True)
class FromWeights(Initializer):
    """The non-zero weights of a network pruned elsewhere.

    Never used to resume a run: a weight just grown is exactly zero.
    """

    @torch.no_grad()
    def mask(
        self,
        weight: Tensor,
        count: int,
        generator: torch.Generator,
        structure: Structure = Unstructured(),  # noqa: B008
    ) -> Tensor:
        """Return the mask of the non-zero weights.

        Raises:
            ValueError: If their number is not ``count``, up to one in a
                thousand weights of the layer, or they are not within the
                structure.
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
