"""Which weights may be active together: the sets that masks come from."""

import torch
from torch import Tensor

from sift_mm.sparsity.registry import Registry
from sift_mm.sparsity.selection import top_values


class Structure:
    """Picks positions by score, so that masks stay within the structure.

    Scores are floating-point tensors of the weight's shape and are left as
    they are; the highest are picked. NaN and -inf come last, and numbers are
    exact whatever the scores are.
    """

    def fit(self, shape: tuple[int, ...], count: int) -> int:
        """The number of active weights next to ``count`` that it can hold."""
        return count

    def first(self, score: Tensor, count: int) -> Tensor:
        """A mask of the highest scores.

        Args:
            score (Tensor): Any shape.
            count (int): Active weights, as :meth:`fit` gives it.

        Returns:
            Tensor: Bool, the score's shape.
        """
        return self.grow(
            score, torch.zeros_like(score, dtype=torch.bool), count
        )

    def drop(self, score: Tensor, mask: Tensor, k: int) -> Tensor:
        """A mask with k active weights fewer, those of the highest scores.

        A structure that moves blocks rounds k here as in :meth:`grow`.

        Args:
            score (Tensor): The mask's shape.
            mask (Tensor): Bool.
            k (int): Weights to drop, at most the active ones.

        Returns:
            Tensor: A new mask.
        """
        raise NotImplementedError

    def grow(
        self,
        score: Tensor,
        mask: Tensor,
        k: int,
        positions: Tensor | None = None,
    ) -> Tensor:
        """A mask with k active weights more, those of the highest scores.

        Args:
            score (Tensor): The mask's shape, or (n,) with ``positions``.
            mask (Tensor): Bool.
            k (int): Weights to grow, at most the inactive ones.
            positions (Tensor, optional): Shape (n,), what :meth:`shortlist`
                gave; nothing else is to be grown.

        Returns:
            Tensor: A new mask.
        """
        raise NotImplementedError

    def shortlist(self, score: Tensor, mask: Tensor, k: int) -> Tensor | None:
        """Positions that :meth:`grow` may pick, whichever k are dropped.

        Scores are kept for these alone between the backward pass, where the
        dense gradient is, and the update that follows the optimizer's step.

        Args:
            score (Tensor): Growth score, the mask's shape.
            mask (Tensor): Bool, as it is before k weights are dropped.
            k (int): Weights to drop and to grow.

        Returns:
            Tensor, optional: Shape (n,), int64 positions in the flattened
            score; None for all of them.
        """
        return None


STRUCTURES: Registry[Structure] = Registry('mask structure')


def best_allowed(
    score: Tensor, barred: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """The k highest scores that are not barred, exactly k.

    Args:
        score (Tensor): Floating point, shape (n,), left as it is.
        barred (Tensor): Bool, same shape.
        k (int): At most as many as are not barred.

    Returns:
        tuple[Tensor, Tensor]: Shape (k,) each: scores, and int64 positions;
        those of NaN and -inf only if need be, as the lowest finite number.
    """
    values, best = top_values(score.masked_fill(barred, -torch.inf), k)
    if bool((values > -torch.inf).all()):
        return values, best
    # NaN was taken for the largest, or -inf for barred.
    low = torch.finfo(score.dtype).min
    score = score.nan_to_num(nan=low, posinf=torch.inf, neginf=low)
    return top_values(score.masked_fill_(barred, -torch.inf), k)


@STRUCTURES.register
class Unstructured(Structure):
    """Any weights, in any place."""

    def drop(self, score: Tensor, mask: Tensor, k: int) -> Tensor:
        """The k highest scores among active weights go."""
        new = mask.flatten().clone()
        new[best_allowed(score.flatten(), ~new, k)[1]] = False
        return new.view(mask.shape)

    def grow(
        self,
        score: Tensor,
        mask: Tensor,
        k: int,
        positions: Tensor | None = None,
    ) -> Tensor:
        """The k highest scores among inactive weights come."""
        new = mask.flatten().clone()
        taken = new if positions is None else new[positions]
        _, best = best_allowed(score.flatten(), taken, k)
        new[best if positions is None else positions[best]] = True
        return new.view(mask.shape)

    def shortlist(self, score: Tensor, mask: Tensor, k: int) -> Tensor | None:
        """The k best inactive weights, and the active ones as good as these.

        What is dropped comes back only if it scores no lower than the k-th
        inactive weight.
        """
        active = mask.flatten()
        score = score.flatten()
        inactive = active.numel() - int(active.count_nonzero())
        if inactive < k:
            return None
        values, best = best_allowed(score, active, k)
        back = (score >= values.min()).logical_and_(active)
        return torch.cat([best, back.nonzero()[:, 0]])
