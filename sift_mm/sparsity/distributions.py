"""Distributions of a sparsity over layers, in exact counts."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

from sift_mm.errors import UserError
from sift_mm.names import first_matches
from sift_mm.registry import Registry
from sift_mm.validation import Share, Sparsities, read_arguments

Shapes = Mapping[str, tuple[int, ...]]


class Distribution:
    """Base class of distributions of active weights over layers.

    Attributes:
        needs_sparsity (bool): True if counts depend on the overall sparsity.
    """

    needs_sparsity: bool = True

    def fixed(self, names: Iterable[str]) -> dict[str, float]:
        """Return the densities that no overall sparsity changes, by name."""
        return {}

    def needs_sparsity_for(self, names: Iterable[str]) -> bool:
        """Return True if the count of a layer depends on the sparsity."""
        names = list(names)
        return self.needs_sparsity and len(self.fixed(names)) < len(names)

    def densities(self, shapes: Shapes, sparsity: float) -> dict[str, float]:
        """Return the density of each layer, in [0, 1], by name.

        Args:
            shapes (Mapping): Weight shapes (out, in, *kernel) by name, in
                network order.
            sparsity (float): Share of zero weights, in [0, 1).
        """
        raise NotImplementedError

    def counts(self, shapes: Shapes, sparsity: float) -> dict[str, int]:
        """Return the active weights of each layer, at least one, by name."""
        densities = self.densities(shapes, sparsity)
        return {
            name: max(1, round(densities[name] * prod(shape)))
            for name, shape in shapes.items()
        }


DISTRIBUTIONS: Registry[Distribution] = Registry(
    'sparsity distribution', Distribution
)


@DISTRIBUTIONS.register
@dataclass(frozen=True)
class Uniform(Distribution):
    """Distribution with the same sparsity in every layer."""

    def densities(self, shapes: Shapes, sparsity: float) -> dict[str, float]:
        """Return the density 1 - s for each layer."""
        return dict.fromkeys(shapes, 1 - sparsity)


@DISTRIBUTIONS.register
@dataclass(frozen=True)
class UniformPlus(Distribution):
    """Uniform distribution with a denser last layer (Gale et al. 2019).

    The other layers keep the given sparsity, so that the network is slightly
    denser than given.

    Args:
        last (float): Highest sparsity of the last layer.
    """

    last: Share = 0.8

    def __post_init__(self) -> None:
        read_arguments(type(self), vars(self))

    def densities(self, shapes: Shapes, sparsity: float) -> dict[str, float]:
        """Return 1 - s for each layer, at least 1 - ``last`` for the last."""
        densities = dict.fromkeys(shapes, 1 - sparsity)
        if densities:
            densities[list(shapes)[-1]] = 1 - min(sparsity, self.last)
        return densities


@DISTRIBUTIONS.register
@dataclass(frozen=True)
class ERK(Distribution):
    """Erdos-Renyi-Kernel: density proportional to sum(shape) / prod(shape).

    Layers that would exceed density 1 become dense, and the factor is solved
    again for the other layers (RigL, section 3).
    """

    def raw_density(self, shape: tuple[int, ...]) -> float:
        """Return the density of a layer up to the common factor."""
        return sum(shape) / prod(shape)

    def densities(self, shapes: Shapes, sparsity: float) -> dict[str, float]:
        """Return the densities; the overall density is 1 - s."""
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
    """Erdos-Renyi: ERK without the kernel size (SET)."""

    def raw_density(self, shape: tuple[int, ...]) -> float:
        """Return the density of a layer up to the common factor."""
        return super().raw_density(shape[:2])


@DISTRIBUTIONS.register
@dataclass(frozen=True)
class Explicit(Distribution):
    """Distribution with a sparsity for each layer, by glob pattern.

    The first matching pattern counts. The overall sparsity has no effect.

    Args:
        sparsities (Mapping): Sparsity in [0, 1) by glob pattern of layer
            names.
    """

    sparsities: Sparsities
    needs_sparsity = False

    def __post_init__(self) -> None:
        read_arguments(type(self), vars(self))

    def densities(self, shapes: Shapes, sparsity: float) -> dict[str, float]:
        """Return the density of each layer.

        Raises:
            ValueError: If a layer matches no pattern, or a pattern no layer.
        """
        found = first_matches(self.sparsities, shapes, 'sparsities')
        for name in shapes:
            if name not in found:
                raise UserError(
                    f'The explicit distribution has no sparsity for {name!r}; '
                    f'its patterns are {list(self.sparsities)}.'
                )
        return {name: 1 - self.sparsities[found[name]] for name in shapes}


class Grouped(Distribution):
    """Distribution over the layers outside groups with their own sparsity.

    Args:
        rest (Distribution): Distribution over the other layers.
        sparsities (Mapping): Sparsity by glob pattern; None for a group of
            the other layers. The first matching pattern counts.
    """

    def __init__(
        self, rest: Distribution, sparsities: Mapping[str, float | None]
    ) -> None:
        self.rest, self.sparsities = rest, sparsities
        self.needs_sparsity = rest.needs_sparsity

    def fixed(self, names: Iterable[str]) -> dict[str, float]:
        """Return the densities of layers whose group has a sparsity."""
        found = first_matches(self.sparsities, names, 'groups')
        return {
            name: 1 - value
            for name, pattern in found.items()
            if (value := self.sparsities[pattern]) is not None
        }

    def densities(self, shapes: Shapes, sparsity: float) -> dict[str, float]:
        """Return the groups' densities, and those of ``rest``."""
        fixed = self.fixed(shapes)
        rest = {n: shape for n, shape in shapes.items() if n not in fixed}
        densities = self.rest.densities(rest, sparsity) | fixed
        return {name: densities[name] for name in shapes}
