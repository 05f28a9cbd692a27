"""Structures of masks: the sets of weights that may be active together."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sift_mm.errors import UserError
from sift_mm.registry import Registry
from sift_mm.sparsity.selection import Candidates


class Structure:
    """Base class of structures, which select weights by score.

    Scores are floating-point tensors of the weight's shape, which methods do
    not change. The highest scores are selected; NaN counts as -inf, and counts
    are exact for any scores. Attributes are plain values, which are saved with
    the masks.
    """

    def fit(self, shape: tuple[int, ...], count: int) -> int:
        """Return the feasible number of active weights next to ``count``."""
        return count

    def first(self, score: Tensor, count: int) -> Tensor:
        """Return a mask of the ``count`` highest scores, a count of `fit`."""
        return self.grow(
            score, torch.zeros_like(score, dtype=torch.bool), count
        )

    def drop(self, score: Tensor, mask: Tensor, k: int) -> Tensor:
        """Return a new mask without the k active weights of highest score.

        A structure of blocks rounds k here and in :meth:`grow` alike.
        """
        raise NotImplementedError

    def grow(self, score: Any, mask: Tensor, k: int) -> Tensor:
        """Return a new mask with the k inactive weights of highest score too.

        The scores have the mask's shape, or are the result of
        :meth:`shortlist`. After :meth:`drop` the new mask has the structure.
        """
        raise NotImplementedError

    def shortlist(self, score: Tensor, mask: Tensor, k: int) -> Any:
        """Return the part of the scores that :meth:`grow` needs.

        The default is all scores. The part is kept from the backward pass,
        with its dense gradient, to the update after the optimizer's step.
        ``mask`` is the mask before k weights are dropped.
        """
        return score

    def holds(self, mask: Tensor, count: int) -> bool:
        """Return True if a mask of the structure contains the given mask."""
        count = max(count, int(mask.count_nonzero()))
        whole = self.first(mask.float(), self.fit(tuple(mask.shape), count))
        return not bool((mask & ~whole).any())

    def describe(self) -> dict[str, Any]:
        """Return name and attributes in the form of a config."""
        return {'type': type(self).__name__, **vars(self)}


STRUCTURES: Registry[Structure] = Registry('mask structure', Structure)


@STRUCTURES.register
class Unstructured(Structure):
    """Structure without constraint; among equal scores the first win."""

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

        These are the k best inactive weights, and active weights of equal or
        higher score, which may be dropped and grown again.
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
        saved (Mapping): State of mask training. Old releases saved no
            structure.
        structure (Structure): Structure of the run.

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
