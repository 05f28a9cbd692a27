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
from sift_mm.sparsity.structures import STRUCTURES, Structure, Unstructured


@dataclass(frozen=True)
class LayerState:
    """Read-only state of a masked layer, from which scores are computed.

    Args:
        mask (Tensor): Bool, the weight's shape.
        weight (Tensor): Any shape.
        gradient (Tensor, optional): Gradient, for algorithms with
            ``needs_gradient``: dense for growth scores, zero outside the mask
            for drop scores, which follow the optimizer's step.
        slots (Mapping[str, Tensor]): Optimizer slots of the weight's shape, by
            name ('momentum_buffer', 'exp_avg', ...).
        step (int): Optimizer step, counted from 1.
        generator (torch.Generator, optional): CPU generator with the same
            numbers on every rank.
    """

    mask: Tensor
    weight: Tensor
    gradient: Tensor | None = None
    slots: Mapping[str, Tensor] = field(default_factory=dict)
    step: int = 1
    generator: torch.Generator | None = None


@dataclass(frozen=True)
class Growth:
    """Growth scores of a layer.

    Args:
        k (int): Number of weights to drop and to grow.
        scores (Any): Scores for :meth:`Structure.grow`.
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

        Args:
            sparse (float): FLOPs of a sparse forward pass, f_S.
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
        algorithm 1).

        Args:
            layer (LayerState): State of the layer, with a dense gradient.
            fraction (float): Share of the active weights to drop, in [0, 1].
        """
        k = drop_count(layer.mask, fraction)
        if k == 0:
            return layer.mask.clone()
        return self.exchange(layer, Growth(k, self.growth_score(layer)))

    @torch.no_grad()
    def shortlist(self, layer: LayerState, fraction: float) -> Growth | None:
        """Compute the growth scores, the first half of an update.

        Takes the arguments of :meth:`update`. Returns the argument of
        :meth:`exchange`, or None if no weight will move.
        """
        k = drop_count(layer.mask, fraction)
        if k == 0:
            return None
        scores = self.growth_score(layer)
        return Growth(k, self.structure.shortlist(scores, layer.mask, k))

    @torch.no_grad()
    def exchange(self, layer: LayerState, growth: Growth) -> Tensor:
        """Return the new mask, the second half of an update."""
        kept = self.structure.drop(
            self.drop_score(layer), layer.mask, growth.k
        )
        # A structure of blocks drops slightly fewer than k.
        missing = count(layer.mask) - count(kept)
        return self.structure.grow(growth.scores, kept, missing)


def drop_count(mask: Tensor, fraction: float) -> int:
    """Count a fraction of a mask's active weights, rounded down."""
    # 0.29 * 100 is 28.999999999999996, hence the small term.
    return int(fraction * count(mask) + 1e-9)


ALGORITHMS: Registry[Algorithm] = Registry(
    'mask-training algorithm', Algorithm
)
AlgorithmLike = Annotated[str | Mapping[str, Any] | Algorithm, ALGORITHMS]
