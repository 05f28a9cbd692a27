"""Which weights may be active together: the sets that masks come from."""

from typing import Any

import torch
from torch import Tensor

from sift_mm.sparsity.partition import (
    Scores,
    Shortlist,
    flip_best_,
    shortlist,
)
from sift_mm.sparsity.registry import Registry


class Structure:
    """Picks positions by score, so that masks stay within the structure.

    Scores are floating-point tensors of the weight's shape and are left as
    they are; the highest are picked. NaN and -inf come last, and numbers are
    exact whatever the scores are.

    Attributes:
        elementwise (bool): Whether scores may be given as
            :class:`Elementwise` where they can be computed so.
    """

    elementwise = False

    def fit(self, shape: tuple[int, ...], count: int) -> int:
        """The number of active weights next to ``count`` that it can hold."""
        return count

    def first(self, score: Tensor, count: int) -> Tensor:
        """A mask of the highest scores, ``count`` as :meth:`fit` gives it."""
        return self.grow(
            score, torch.zeros_like(score, dtype=torch.bool), count
        )

    def drop(self, score: Tensor, mask: Tensor, k: int) -> Tensor:
        """A new mask with k active weights fewer, those that score highest.

        A structure that moves blocks rounds k here as in :meth:`grow`.
        """
        raise NotImplementedError

    def grow(self, score: Any, mask: Tensor, k: int) -> Tensor:
        """A new mask with k active weights more, those that score highest.

        The scores are of the mask's shape, or what :meth:`shortlist` made of
        them.
        """
        raise NotImplementedError

    def shortlist(self, score: Any, mask: Tensor, k: int) -> Any:
        """What :meth:`grow` needs of the scores, whichever k are dropped.

        All of them, unless overridden. It is held between the backward pass,
        where the dense gradient is, and the update that follows the
        optimizer's step; ``mask`` is the one before k weights are dropped.
        """
        return score


STRUCTURES: Registry[Structure] = Registry('mask structure', Structure)


@STRUCTURES.register
class Unstructured(Structure):
    """Any weights, in any place; of equal scores the first ones."""

    elementwise = True

    def drop(self, score: Scores, mask: Tensor, k: int) -> Tensor:
        """The k highest scores among active weights go."""
        kept = mask.clone(memory_format=torch.contiguous_format)
        flip_best_(score, k, kept.view(-1), True)
        return kept

    def grow(self, score: Scores | Shortlist, mask: Tensor, k: int) -> Tensor:
        """The k highest scores among inactive weights come."""
        grown = mask.clone(memory_format=torch.contiguous_format)
        if isinstance(score, Shortlist):
            score.flip_(grown.view(-1), k, False)
        else:
            flip_best_(score, k, grown.view(-1), False)
        return grown

    def shortlist(
        self, score: Scores, mask: Tensor, k: int
    ) -> Tensor | Shortlist:
        """What may be among the k best inactive weights after a drop.

        What is dropped comes back only if it scores no lower than the k-th
        weight that is inactive now.
        """
        return shortlist(score, k, mask.flatten())
