"""Mask-training algorithms: static, SET, RigL.

An algorithm is two scores, one to drop by and one to grow by; its structure
picks the highest. An update is a pure function: state of a layer and
fraction in, new mask out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor

from sift_mm.checkpoint.packing import count
from sift_mm.registry import Registry
from sift_mm.sparsity.structures import STRUCTURES, Structure, Unstructured


@dataclass(frozen=True)
class LayerState:
    """State of a masked layer that scores are computed from, to be read only.

    Args:
        mask (Tensor): Bool, the weight's shape.
        weight (Tensor): Any shape.
        gradient (Tensor, optional): Of the weight's shape, for an algorithm
            that asks for it: dense for growth scores. Drop scores come after
            the optimizer's step, where it is zero outside the mask.
        slots (Mapping[str, Tensor]): The optimizer's tensors of the weight's
            shape, by name ('momentum_buffer', 'exp_avg', ...).
        step (int): Optimizer step, counted from 1.
        generator (torch.Generator, optional): Source of randomness, on the
            CPU, the same on every rank.
    """

    mask: Tensor
    weight: Tensor
    gradient: Tensor | None = None
    slots: Mapping[str, Tensor] = field(default_factory=dict)
    step: int = 1
    generator: torch.Generator | None = None


@dataclass(frozen=True)
class Growth:
    """Growth scores of a layer, as far as an update can need them.

    Args:
        k (int): Weights to drop and to grow.
        scores (Any): Scores as :meth:`Structure.grow` takes them.
    """

    k: int
    scores: Any


class Algorithm:
    """Drop by a score, grow by a score.

    Args:
        structure (str | dict | Structure): Which weights may be active
            together.

    Attributes:
        dynamic (bool): Whether masks change during training.
        needs_gradient (bool): Whether the growth score reads the dense
            gradient.
    """

    dynamic = True
    needs_gradient = False
    structure: Structure = Unstructured()

    def __init__(
        self,
        structure: Annotated[
            str | Mapping[str, Any] | Structure, STRUCTURES
        ] = 'Unstructured',
    ) -> None:
        self.structure = STRUCTURES.build(structure)

    def drop_score(self, layer: LayerState) -> Tensor:
        """Return how much each active weight deserves to be dropped.

        Floating point, of the weight's shape; the negative magnitude, unless
        overridden.
        """
        return layer.weight.abs().neg_()

    def growth_score(self, layer: LayerState) -> Tensor:
        """Return how much each position deserves to be grown.

        Floating point, of the weight's shape, and no view of the gradient,
        which is masked before the score is used.
        """
        raise NotImplementedError

    def training_flops(
        self, sparse: float, dense: float, interval: int, end: float
    ) -> float:
        """Return the FLOPs of training on one sample, averaged over time.

        A backward pass costs two forward passes. An algorithm that reads the
        dense gradient runs one dense backward for the weights in every
        ``interval + 1`` (RigL, appendix H), until its last update:
        (3 f_S dT + 2 f_S + f_D) / (dT + 1).

        Args:
            sparse (float): FLOPs of a sparse forward pass, f_S.
            dense (float): FLOPs of the same pass without masks, f_D.
            interval (int): Optimizer steps between two updates, dT.
            end (float): Share of the steps until the last update.
        """
        if not (self.dynamic and self.needs_gradient):
            return 3 * sparse
        updating = 3 * sparse * interval + 2 * sparse + dense
        return end * updating / (interval + 1) + (1 - end) * 3 * sparse

    @torch.no_grad()
    def update(self, layer: LayerState, fraction: float) -> Tensor:
        """Return the new mask of a layer.

        Drops the ``k = floor(fraction * active)`` active weights of highest
        drop score, then grows the k positions of the highest growth score
        among all that are not active now; a position just dropped may come
        back (RigL, algorithm 1).

        Args:
            layer (LayerState): Its gradient, if asked for, is dense.
            fraction (float): Share of the active weights to drop, in [0, 1].
        """
        k = drop_count(layer.mask, fraction)
        if k == 0:
            return layer.mask.clone()
        return self.exchange(layer, Growth(k, self.growth_score(layer)))

    @torch.no_grad()
    def shortlist(self, layer: LayerState, fraction: float) -> Growth | None:
        """Compute the growth scores that an update needs of the gradient.

        First half of an update. It takes the arguments of :meth:`update` and
        returns those of :meth:`exchange`, or None if nothing is to move.
        """
        k = drop_count(layer.mask, fraction)
        if k == 0:
            return None
        scores = self.growth_score(layer)
        return Growth(k, self.structure.shortlist(scores, layer.mask, k))

    @torch.no_grad()
    def exchange(self, layer: LayerState, growth: Growth) -> Tensor:
        """Drop by the weights, grow by scores: second half of an update."""
        kept = self.structure.drop(
            self.drop_score(layer), layer.mask, growth.k
        )
        return self.structure.grow(growth.scores, kept, growth.k)


def drop_count(mask: Tensor, fraction: float) -> int:
    """Return a fraction of a mask's active weights, rounded down."""
    # The small term: 0.29 * 100 is 28.999999999999996.
    return int(fraction * count(mask) + 1e-9)


ALGORITHMS: Registry[Algorithm] = Registry(
    'mask-training algorithm', Algorithm
)
AlgorithmLike = Annotated[str | Mapping[str, Any] | Algorithm, ALGORITHMS]


@ALGORITHMS.register
class Static(Algorithm):
    """The initial mask, never changed."""

    dynamic = False


@ALGORITHMS.register
class SET(Algorithm):
    """Sparse Evolutionary Training: grow at random (Mocanu et al. 2018)."""

    def growth_score(self, layer: LayerState) -> Tensor:
        """Draw uniform random numbers."""
        shape = layer.weight.shape
        drawn = torch.rand(shape, generator=layer.generator)
        return drawn.to(layer.weight.device)


@ALGORITHMS.register
class RigL(Algorithm):
    """Grow where the dense gradient is largest (Evci et al. 2020)."""

    needs_gradient = True

    def growth_score(self, layer: LayerState) -> Tensor:
        """Return the magnitudes of the dense mean gradient."""
        assert layer.gradient is not None
        return layer.gradient.abs()
