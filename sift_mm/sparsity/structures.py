"""Structures: the sets of positions that masks are drawn from."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sift_mm.errors import UserError
from sift_mm.registry import Registry
from sift_mm.sparsity.selection import Candidates


class Structure:
    """Chooser of positions by score, for first masks, drops and growth.

    Scores are floating-point tensors of the weight's shape and are left as
    they are; the highest are picked. NaN and -inf come last, and numbers are
    exact whatever the scores are. A structure's attributes are plain values:
    they are saved with the masks.
    """

    def fit(self, shape: tuple[int, ...], count: int) -> int:
        """Return the possible number of active weights next to ``count``."""
        return count

    def first(self, score: Tensor, count: int) -> Tensor:
        """Return a mask of the highest scores, ``count`` as of :meth:`fit`."""
        return self.grow(
            score, torch.zeros_like(score, dtype=torch.bool), count
        )

    def drop(self, score: Tensor, mask: Tensor, k: int) -> Tensor:
        """Return a new mask without the k active weights that score highest.

        A structure that moves blocks rounds k here as in :meth:`grow`.
        """
        raise NotImplementedError

    def grow(self, score: Any, mask: Tensor, k: int) -> Tensor:
        """Return a new mask with k inactive weights more, of highest score.

        The scores are of the mask's shape, or the result of
        :meth:`shortlist`. After :meth:`drop` the new mask is one of the
        structure again.
        """
        raise NotImplementedError

    def shortlist(self, score: Tensor, mask: Tensor, k: int) -> Any:
        """Return the part of the scores that :meth:`grow` can need.

        All of them, unless overridden. The part is held between the backward
        pass, where the dense gradient is, and the update that follows the
        optimizer's step; ``mask`` is the one before k weights are dropped.
        """
        return score

    def holds(self, mask: Tensor, count: int) -> bool:
        """Tell whether a mask lies within one of ``count`` active weights."""
        count = max(count, int(mask.count_nonzero()))
        whole = self.first(mask.float(), self.fit(tuple(mask.shape), count))
        return not bool((mask & ~whole).any())

    def describe(self) -> dict[str, Any]:
        """Return name and attributes, as a config writes them."""
        return {'type': type(self).__name__, **vars(self)}


STRUCTURES: Registry[Structure] = Registry('mask structure', Structure)


@STRUCTURES.register
class Unstructured(Structure):
    """Any weights, in any place; of equal scores the first ones."""

    def drop(self, score: Tensor, mask: Tensor, k: int) -> Tensor:
        """Drop the k highest scores among active weights."""
        kept = mask.clone(memory_format=torch.contiguous_format)
        kept.view(-1)[Candidates.where(score, mask).best(k)] = False
        return kept

    def grow(self, score: Tensor | Candidates, mask: Tensor, k: int) -> Tensor:
        """Grow the k highest scores among inactive weights."""
        if isinstance(score, Candidates):
            free = score.within(~mask)
        else:
            free = Candidates.where(score, ~mask)
        grown = mask.clone(memory_format=torch.contiguous_format)
        grown.view(-1)[free.best(k)] = True
        return grown

    def shortlist(self, score: Tensor, mask: Tensor, k: int) -> Candidates:
        """Return the candidates for the k best inactive weights.

        These are the k best of the weights that are inactive now, and the
        active ones that score as high: a weight that is dropped comes back
        before a lower one.
        """
        free = Candidates.where(score, ~mask)
        if len(free.places) <= k:
            return Candidates.where(score, torch.ones_like(mask))
        chosen = free.best(k)
        lowest = score.flatten()[chosen]
        floor = lowest.nan_to_num(-torch.inf, torch.inf, -torch.inf).min()
        wanted = (mask & ~(score < floor)).contiguous()  # NaN stays in.
        wanted.view(-1)[chosen] = True
        return Candidates.where(score, wanted)


def check_structure(saved: Mapping[str, Any], structure: Structure) -> None:
    """Refuse masks of another structure than a run's.

    Args:
        saved (Mapping): State of mask training; without a structure in
            releases that had none.
        structure (Structure): The run's.

    Raises:
        ValueError: If they differ.
    """
    there = saved.get('structure', Unstructured().describe())
    here = structure.describe()
    if dict(there) != here:
        raise UserError(
            f'The saved masks have structure={_written(there)} and the '
            f'algorithm of this run has {_written(here)}; set '
            f'algorithm=dict(type=..., structure={_written(there)}).'
        )


def _written(structure: Mapping[str, Any]) -> str:
    options = ', '.join(f'{k}={v!r}' for k, v in structure.items())
    return f'dict({options})' if len(structure) > 1 else f'{options[5:]}'
