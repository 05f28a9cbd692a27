"""How a sparsity is shared out over layers, in exact counts."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from typing import Annotated, Any, ClassVar

from sift_mm.errors import UserError
from sift_mm.registry import Registry
from sift_mm.validation import Share, Sparsities, read_arguments

Shapes = Mapping[str, tuple[int, ...]]


class Distribution:
    """Gives each layer its number of active weights.

    Attributes:
        needs_sparsity (bool): Whether the overall sparsity plays a part.
    """

    needs_sparsity: ClassVar[bool] = True

    def densities(self, shapes: Shapes, sparsity: float) -> dict[str, float]:
        """Share of active weights of each layer, in [0, 1], by name.

        Args:
            shapes (Mapping): Weight shapes (out, in, *kernel) by name, in
                the order of the network.
            sparsity (float): Share of zero weights, in [0, 1).
        """
        raise NotImplementedError

    def counts(self, shapes: Shapes, sparsity: float) -> dict[str, int]:
        """Number of active weights of each layer, at least one, by name."""
        densities = self.densities(shapes, sparsity)
        return {
            name: max(1, round(densities[name] * prod(shape)))
            for name, shape in shapes.items()
        }


DISTRIBUTIONS: Registry[Distribution] = Registry(
    'sparsity distribution', Distribution
)
DistributionLike = Annotated[
    str | Mapping[str, Any] | Distribution, DISTRIBUTIONS
]


@DISTRIBUTIONS.register
@dataclass(frozen=True)
class Uniform(Distribution):
    """The same sparsity in every layer."""

    def densities(self, shapes: Shapes, sparsity: float) -> dict[str, float]:
        """Density 1 - s everywhere."""
        return dict.fromkeys(shapes, 1 - sparsity)


@DISTRIBUTIONS.register
@dataclass(frozen=True)
class UniformPlus(Distribution):
    """Uniform, but the last layer keeps at least a fifth of its weights.

    After Gale et al. 2019. The others stay at the given sparsity, so that
    the whole is a little denser than asked for above ``last``.

    Args:
        last (float): Highest sparsity of the last layer.
    """

    last: Share = 0.8

    def __post_init__(self) -> None:
        read_arguments(type(self), vars(self))

    def densities(self, shapes: Shapes, sparsity: float) -> dict[str, float]:
        """Density 1 - s, the last layer at least 1 - ``last``."""
        densities = dict.fromkeys(shapes, 1 - sparsity)
        if densities:
            densities[list(shapes)[-1]] = 1 - min(sparsity, self.last)
        return densities


@DISTRIBUTIONS.register
@dataclass(frozen=True)
class ERK(Distribution):
    """Erdos-Renyi-Kernel: density proportional to sum(shape) / prod(shape).

    Layers that would exceed density 1 become dense and the rest is solved
    again, until the total budget holds (RigL, section 3).
    """

    def raw_density(self, shape: tuple[int, ...]) -> float:
        """Density of a layer up to the common factor."""
        return sum(shape) / prod(shape)

    def densities(self, shapes: Shapes, sparsity: float) -> dict[str, float]:
        """Density by layer; the active weights add up to 1 - s of all."""
        sizes = {name: prod(shape) for name, shape in shapes.items()}
        raw = {name: self.raw_density(s) for name, s in shapes.items()}
        dense: set[str] = set()
        while len(dense) < len(shapes):
            budget = (1 - sparsity) * sum(sizes.values()) - sum(
                sizes[name] for name in dense
            )
            rest = [name for name in shapes if name not in dense]
            factor = budget / sum(raw[name] * sizes[name] for name in rest)
            full = {name for name in rest if factor * raw[name] >= 1}
            if not full:
                return {
                    name: 1.0 if name in dense else factor * raw[name]
                    for name in shapes
                }
            dense |= full
        return dict.fromkeys(shapes, 1.0)


@DISTRIBUTIONS.register
@dataclass(frozen=True)
class ER(ERK):
    """Erdos-Renyi: as ERK, without the kernel's sizes (SET)."""

    def raw_density(self, shape: tuple[int, ...]) -> float:
        """Density of a layer up to the common factor."""
        return super().raw_density(shape[:2])


@DISTRIBUTIONS.register
@dataclass(frozen=True)
class Explicit(Distribution):
    """A sparsity for each layer, by glob pattern of its name.

    The first pattern that matches decides. The overall sparsity plays no
    part.

    Args:
        sparsities (Mapping): Glob pattern to sparsity in [0, 1).
    """

    needs_sparsity: ClassVar[bool] = False
    sparsities: Sparsities

    def __post_init__(self) -> None:
        read_arguments(type(self), vars(self))

    def densities(self, shapes: Shapes, sparsity: float) -> dict[str, float]:
        """Density by layer, as written.

        Raises:
            ValueError: If a layer matches no pattern, or a pattern no layer.
        """
        densities, used = {}, set()
        for name in shapes:
            for pattern, value in self.sparsities.items():
                if fnmatchcase(name, pattern):
                    densities[name] = 1 - value
                    used.add(pattern)
                    break
            else:
                raise UserError(
                    f'The explicit distribution gives no sparsity for '
                    f'{name!r}; its patterns are {list(self.sparsities)}.'
                )
        if unused := [p for p in self.sparsities if p not in used]:
            raise UserError(
                f'No sparse parameter is left for the patterns '
                f'{unused}; there are {list(shapes)}.'
            )
        return densities
