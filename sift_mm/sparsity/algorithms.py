"""Mask-training algorithms: static, SET, RigL.

An algorithm is a growth score. Everything else of an update (drop the active
weights of least magnitude, grow as many) is shared, and is a pure function:
old mask, weight, gradient, fraction and generator in, new mask out.
"""

import torch
from torch import Tensor

from sift_mm.sparsity.registry import Registry
from sift_mm.sparsity.selection import top_indices


class Algorithm:
    """Drop by magnitude, grow by a score.

    Attributes:
        dynamic (bool): Whether masks change during training.
        needs_gradient (bool): Whether the score reads the dense gradient.
    """

    dynamic = True
    needs_gradient = False

    def growth_score(
        self,
        weight: Tensor,
        gradient: Tensor | None,
        generator: torch.Generator,
    ) -> Tensor:
        """How much each position deserves to be grown.

        Args:
            weight (Tensor): The weight, any shape.
            gradient (Tensor, optional): Its dense gradient, same shape;
                None for an algorithm that does not need it.
            generator (torch.Generator): Source of randomness, on the CPU.

        Returns:
            Tensor: A new tensor of the weight's shape, values >= 0.
        """
        raise NotImplementedError

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

        Drops the ``k = floor(fraction * active)`` active weights of least
        magnitude, then grows the k positions of the highest score among all
        that are not active now; a position just dropped may come back
        (RigL, algorithm 1).

        Args:
            mask (Tensor): Bool, the weight's shape.
            weight (Tensor): Any shape.
            gradient (Tensor, optional): Dense gradient, same shape.
            fraction (float): Share of the active weights to drop, in [0, 1].
            generator (torch.Generator): Source of randomness, on the CPU.

        Returns:
            Tensor: The new mask, with as many active weights as the old.
        """
        # The small term: 0.29 * 100 is 28.999999999999996.
        k = int(fraction * int(mask.count_nonzero()) + 1e-9)
        if k == 0:
            return mask.clone()
        new = mask.clone().flatten()
        magnitude = weight.abs().neg_().flatten()
        new[top_indices(magnitude.masked_fill_(~new, -torch.inf), k)] = False
        score = self.growth_score(weight, gradient, generator).flatten()
        new[top_indices(score.masked_fill_(new, -1), k)] = True
        return new.view(mask.shape)


ALGORITHMS: Registry[Algorithm] = Registry('mask-training algorithm')


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

    def growth_score(
        self,
        weight: Tensor,
        gradient: Tensor | None,
        generator: torch.Generator,
    ) -> Tensor:
        """Absolute value of the dense mean gradient."""
        assert gradient is not None
        return gradient.abs()
