"""Mask-training algorithms: static, SET, RigL.

An algorithm is two scores, which weights to drop and which to grow, and the
structure that picks the highest. An update is a pure function: old mask,
weight, gradient, fraction and generator in, new mask out.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import torch
from torch import Tensor

from sift_mm.checkpoint.packing import count
from sift_mm.sparsity.partition import Elementwise, Magnitude
from sift_mm.sparsity.registry import Registry
from sift_mm.sparsity.structures import STRUCTURES, Structure, Unstructured

Method = TypeVar('Method', bound=Callable[..., Tensor])


def elementwise(method: Method) -> Method:
    """Mark a score of which each value depends on one weight alone.

    It is then computed in pieces, of shape (n,), and where it is needed: a
    score of a whole layer is written to memory and read back. A method that
    overrides a marked one has to be marked anew.
    """
    method.elementwise = True  # type: ignore[attr-defined]
    return method


def magnitude(of: str, sign: int) -> Callable[[Method], Method]:
    """Mark a score as the magnitude of one argument, or the negative of it.

    It is then computed by the pass that compares it. Such a score is
    elementwise too, see :func:`elementwise`.

    Args:
        of (str): Name of the argument.
        sign (int): 1 or -1.
    """

    def mark(method: Method) -> Method:
        names = list(inspect.signature(method).parameters)
        # Of arguments without self, as `_scores` has them.
        place = names.index(of) - 1
        method.magnitude = place, sign  # type: ignore[attr-defined]
        return elementwise(method)

    return mark


@dataclass(frozen=True)
class Growth:
    """Growth scores of a layer, as far as an update can need them.

    Args:
        k (int): Weights to drop and to grow.
        scores (Any): As :meth:`Structure.grow` takes them.
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

    @magnitude('weight', -1)
    def drop_score(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        """How much each active weight deserves to be dropped.

        Floating point, of the weight's shape; the negative magnitude, unless
        overridden. The generator is on the CPU.
        """
        return weight.abs().neg_()

    def growth_score(
        self,
        weight: Tensor,
        gradient: Tensor | None,
        generator: torch.Generator,
    ) -> Tensor:
        """How much each position deserves to be grown.

        Floating point, of the weight's shape, and no view of the dense
        gradient, which is masked before the score is used; it is None for an
        algorithm that does not need it. One that does gets the weights that
        it was taken at.
        """
        raise NotImplementedError

    def training_flops(
        self, sparse: float, dense: float, interval: int, end: float
    ) -> float:
        """FLOPs of training on one sample, averaged over the schedule.

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
    def update(
        self,
        mask: Tensor,
        weight: Tensor,
        gradient: Tensor | None,
        fraction: float,
        generator: torch.Generator,
    ) -> Tensor:
        """One update of a layer's mask.

        Drops the ``k = floor(fraction * active)`` active weights of highest
        drop score, then grows the k positions of the highest growth score
        among all that are not active now; a position just dropped may come
        back (RigL, algorithm 1).

        Args:
            mask (Tensor): Bool, the weight's shape.
            weight (Tensor): Any shape.
            gradient (Tensor, optional): Dense gradient, same shape.
            fraction (float): Share of the active weights to drop, in [0, 1].
            generator (torch.Generator): Source of randomness, on the CPU.
        """
        k = drop_count(mask, fraction)
        if k == 0:
            return mask.clone()
        scores = self._scores(self.growth_score, weight, gradient, generator)
        return self.exchange(mask, weight, Growth(k, scores), generator)

    @torch.no_grad()
    def shortlist(
        self,
        mask: Tensor,
        weight: Tensor,
        gradient: Tensor | None,
        fraction: float,
        generator: torch.Generator,
    ) -> Growth | None:
        """First half of an update: all that it needs of the gradient.

        It takes what :meth:`update` does, and gives what :meth:`exchange`
        needs, None if nothing is to move.
        """
        k = drop_count(mask, fraction)
        if k == 0:
            return None
        scores = self._scores(self.growth_score, weight, gradient, generator)
        return Growth(k, self.structure.shortlist(scores, mask, k))

    @torch.no_grad()
    def exchange(
        self,
        mask: Tensor,
        weight: Tensor,
        growth: Growth,
        generator: torch.Generator,
    ) -> Tensor:
        """Second half of an update: drop by the weights, grow by scores."""
        drop = self._scores(self.drop_score, weight, generator)
        kept = self.structure.drop(drop, mask, growth.k)
        return self.structure.grow(growth.scores, kept, growth.k)

    def _scores(self, method: Callable[..., Tensor], *arguments: Any) -> Any:
        """All scores, or what computes them where they are asked for."""
        marked = getattr(method, 'elementwise', False)
        if not (marked and self.structure.elementwise):
            return method(*arguments)
        if known := getattr(method, 'magnitude', None):
            place, sign = known
            return Magnitude(arguments[place], sign)
        tensors = [a for a in arguments if isinstance(a, Tensor)]
        others = [a for a in arguments if not isinstance(a, Tensor)]
        return Elementwise(lambda *parts: method(*parts, *others), *tensors)


def drop_count(mask: Tensor, fraction: float) -> int:
    """How many of a mask's active weights a fraction is, rounded down."""
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

    def growth_score(
        self,
        weight: Tensor,
        gradient: Tensor | None,
        generator: torch.Generator,
    ) -> Tensor:
        """Uniform random numbers."""
        return torch.rand(weight.shape, generator=generator).to(weight.device)


@ALGORITHMS.register
class RigL(Algorithm):
    """Grow where the dense gradient is largest (Evci et al. 2020)."""

    needs_gradient = True

    @magnitude('gradient', 1)
    def growth_score(
        self,
        weight: Tensor,
        gradient: Tensor | None,
        generator: torch.Generator,
    ) -> Tensor:
        """Absolute value of the dense mean gradient."""
        assert gradient is not None
        return gradient.abs()
