"""Base of the mask-training algorithms.

An algorithm is a drop score and a growth score; its structure picks the
weights of highest score. An update is a pure function from the state of a
layer and a fraction to a new mask.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor

from sift_mm.checkpoint.packing import count
from sift_mm.registry import Registry
from sift_mm.sparsity.structures import (
    STRUCTURES,
    Structure,
    StructureLike,
    Unstructured,
)


@dataclass(frozen=True)
class LayerState:
    """Read-only state of a masked layer, from which scores are computed.

    Args:
        mask (Tensor): Bool, the weight's shape.
        weight (Tensor): Any shape.
        gradient (Tensor, optional): Mean gradient. Growth scores of
            algorithms with ``needs_gradient`` see the dense one; else it is
            zero outside the mask.
        momentum (Tensor, optional): Running mean of the dense gradients, for
            algorithms with ``needs_momentum``.
        slots (Mapping[str, Tensor]): Optimizer slots of the weight's shape, by
            name ('momentum_buffer', 'exp_avg', ...).
        step (int): Optimizer step, counted from 1.
        generator (torch.Generator, optional): CPU generator with the same
            numbers on every rank.
        target (int, optional): Active weights after the update; None for as
            many as before.
        final (int, optional): Active weights after the last update; None for
            as many as ``target``.
    """

    mask: Tensor
    weight: Tensor
    gradient: Tensor | None = None
    slots: Mapping[str, Tensor] = field(default_factory=dict)
    step: int = 1
    generator: torch.Generator | None = None
    momentum: Tensor | None = None
    target: int | None = None
    final: int | None = None


@dataclass(frozen=True)
class Growth:
    """Growth scores of a layer.

    Args:
        k (int): Number of weights to drop, besides those by which the
            density falls.
        scores (Any): Scores for :meth:`Structure.grow`; None if nothing is
            to grow.
    """

    k: int
    scores: Any


class Algorithm:
    """Base class of algorithms that drop and grow weights by scores.

    Args:
        structure (str | dict | Structure): Structure of the masks.

    Attributes:
        dynamic (bool): True if masks change during training.
        needs_gradient (bool): True if the growth score reads the dense
            gradient.
        needs_momentum (bool): True if the growth score reads the running mean
            of the dense gradients, which then are needed in every step.
        drops_by_gradient (bool): True if the drop score reads the gradient,
            of which a copy is kept: clipping and optimizers change it.
        regrows (bool): True if the drop fraction moves weights.
    """

    dynamic = True
    needs_gradient = False
    needs_momentum = False
    drops_by_gradient = False
    regrows = True
    structure: Structure = Unstructured()

    def __init__(self, structure: StructureLike = 'Unstructured') -> None:
        self.structure = STRUCTURES.build(structure)

    def check_layer(self, name: str, shape: tuple[int, ...]) -> None:
        """Refuse a parameter that the algorithm cannot train.

        Raises:
            ValueError: If it cannot.
        """

    @property
    def changes_density(self) -> bool:
        """True if the number of active weights depends on the step."""
        return type(self).density is not Algorithm.density

    def density(self, final: float, progress: float, fraction: float) -> float:
        """Return the density of a layer from an update until the next.

        After the last update it is ``final`` in any case.

        Args:
            final (float): Density after the last update.
            progress (float): Step of the update divided by that of the last
                update, in [0, 1); 0 for the first masks.
            fraction (float): Drop fraction of the update; 0 for the first
                masks.
        """
        return final

    def keep_count(self, layer: LayerState, fraction: float) -> int:
        """Count the active weights that an update keeps.

        The default is what a drop fraction leaves of the smaller of the
        numbers before and after the update.
        """
        active = count(layer.mask)
        least = min(active, layer.target or active)
        return least - drop_count(least, fraction if self.regrows else 0.0)

    def drop_score(self, layer: LayerState) -> Tensor:
        """Return the drop score of each weight; the highest are dropped.

        Floating point, of the weight's shape. The default is the negative
        magnitude.
        """
        return layer.weight.abs().neg_()

    def growth_score(self, layer: LayerState) -> Tensor:
        """Return the growth score of each position; the highest are grown.

        Floating point, of the weight's shape. It must not be a view of the
        gradient, which is masked before the score is used.
        """
        raise NotImplementedError

    def training_flops(
        self, sparse: float, dense: float, interval: int, end: float
    ) -> float:
        """Return the FLOPs per training sample, averaged over all steps.

        A backward pass costs two forward passes. An algorithm that reads the
        dense gradient computes it once in ``interval + 1`` steps (RigL,
        appendix H) until the last update: (3 f_S dT + 2 f_S + f_D) / (dT + 1).
        The result is linear in both FLOPs: groups of layers add up.

        Args:
            sparse (float): FLOPs of a sparse forward pass, f_S, as a mean
                over the training.
            dense (float): FLOPs of a forward pass without masks, f_D.
            interval (int): Optimizer steps between two updates, dT.
            end (float): Share of the steps up to the last update.
        """
        if not (self.dynamic and self.needs_gradient):
            return 3 * sparse
        updating = 3 * sparse * interval + 2 * sparse + dense
        return end * updating / (interval + 1) + (1 - end) * 3 * sparse

    @torch.no_grad()
    def update(self, layer: LayerState, fraction: float) -> Tensor:
        """Return the new mask of a layer.

        The ``k = floor(fraction * active)`` active weights of highest drop
        score are dropped, then the k inactive positions of highest growth
        score are grown; a dropped position may be grown again (RigL,
        algorithm 1). Where ``layer.target`` differs from the number of active
        weights, so many more are dropped or grown.

        Args:
            layer (LayerState): State of the layer, with a dense gradient.
            fraction (float): Share of the active weights to drop, in [0, 1].
        """
        k, grow = self._amounts(layer, fraction)
        scores = self.growth_score(layer) if grow else None
        return self.exchange(layer, Growth(k, scores))

    def _amounts(self, layer: LayerState, fraction: float) -> tuple[int, int]:
        """Return how many weights to drop for growth, and how many to grow."""
        active = count(layer.mask)
        target, kept = layer.target or active, self.keep_count(layer, fraction)
        return min(active, target) - kept, target - kept

    @torch.no_grad()
    def shortlist(self, layer: LayerState, fraction: float) -> Growth:
        """Compute the growth scores, the first half of an update.

        Takes the arguments of :meth:`update`; returns the argument of
        :meth:`exchange`.
        """
        k, grow = self._amounts(layer, fraction)
        if grow == 0:
            return Growth(k, None)
        scores = self.growth_score(layer)
        return Growth(k, self.structure.shortlist(scores, layer.mask, grow))

    @torch.no_grad()
    def exchange(self, layer: LayerState, growth: Growth) -> Tensor:
        """Return the new mask, the second half of an update."""
        mask, active = layer.mask, count(layer.mask)
        target = layer.target or active
        if target >= active and growth.scores is None:
            return mask.clone()
        score = self.drop_score(layer)
        if target < active:
            mask = self.structure.prune(score, mask, target)
        if growth.scores is None:
            return mask
        kept = self.structure.drop(score, mask, growth.k)
        # A structure of blocks drops slightly fewer than k.
        missing = target - count(kept)
        return self.structure.grow(growth.scores, kept, missing)


def drop_count(active: int, fraction: float) -> int:
    """Count a fraction of the active weights, rounded down."""
    # 0.29 * 100 is 28.999999999999996, hence the small term.
    return int(fraction * active + 1e-9)


ALGORITHMS: Registry[Algorithm] = Registry(
    'mask-training algorithm', Algorithm
)
AlgorithmLike = Annotated[str | Mapping[str, Any] | Algorithm, ALGORITHMS]
