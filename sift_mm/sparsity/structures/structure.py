"""Base of the structures: sets of weights that may be active together."""

from collections.abc import Mapping
from math import prod
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from sift_mm.checkpoint.packing import count as count_active
from sift_mm.errors import UserError
from sift_mm.orientation import filter_shape, filters_first
from sift_mm.registry import Registry


class Structure:
    """Base class of structures, which select weights by score.

    Scores are floating-point tensors of the weight's shape, which methods do
    not change. The highest scores are selected; NaN counts as -inf, and counts
    are exact for any scores. Attributes are plain values, which are saved with
    the masks.
    """

    @property
    def density(self) -> float | None:
        """Only possible density of a sparse layer, or None for any."""
        return None

    def check(self, shape: tuple[int, ...], groups: int) -> str:
        """Return why a layer cannot have the structure, or ''.

        Args:
            shape (tuple): Weight shape (out, in / groups, *kernel).
            groups (int): Groups of a convolution, 1 of a linear layer.
        """
        return ''

    def fit(self, shape: tuple[int, ...], count: int) -> int:
        """Return the feasible number of active weights next to ``count``."""
        return count

    def first(self, score: Tensor, count: int) -> Tensor:
        """Return a mask of the ``count`` highest scores, a count of `fit`."""
        return self.grow(
            score, torch.zeros_like(score, dtype=torch.bool), count
        )

    def drop(self, score: Tensor, mask: Tensor, k: int) -> Tensor:
        """Return a new mask without k active weights of highest score.

        A structure of blocks drops fewer if k is not a multiple of a block.
        """
        raise NotImplementedError

    def grow(self, score: Any, mask: Tensor, k: int) -> Tensor:
        """Return a new mask of the structure with k more active weights.

        The scores have the mask's shape, or are the result of
        :meth:`shortlist`. Together with k, the active weights of ``mask`` are
        a count of :meth:`fit`.
        """
        raise NotImplementedError

    def shortlist(self, score: Tensor, mask: Tensor, k: int) -> Any:
        """Return the part of the scores that :meth:`grow` needs.

        The default is all scores. The part is kept from the backward pass,
        with its dense gradient, to the update after the optimizer's step.
        ``mask`` is the mask before k weights are dropped.
        """
        return score

    def prune(self, score: Tensor, mask: Tensor, count: int) -> Tensor:
        """Return the ``count`` active weights of lowest score as a mask."""
        # Finite sums of a block's scores stay above those outside the mask.
        most = torch.finfo(score.dtype).max / 64
        rest = (-score).nan_to_num(-most).clamp(-most, most)
        return self.first(rest.masked_fill(~mask, -torch.inf), count)

    def has(self, mask: Tensor) -> bool:
        """Return True if a mask is of the structure."""
        active = count_active(mask)
        exact = self.fit(tuple(mask.shape), active) == active
        return exact and torch.equal(self.first(mask.float(), active), mask)

    def describe(self) -> dict[str, Any]:
        """Return name and attributes in the form of a config."""
        return {'type': type(self).__name__, **vars(self)}

    def __str__(self) -> str:
        return describe_structure(self.describe())


STRUCTURES: Registry[Structure] = Registry('mask structure', Structure)
StructureLike = Annotated[str | Mapping[str, Any] | Structure, STRUCTURES]


def fit_counts(
    structures: Mapping[str, Structure],
    model: nn.Module,
    counts: Mapping[str, int],
) -> dict[str, int]:
    """Round the active weights of layers to counts of a structure.

    Args:
        structures (Mapping): Structure of each mask.
        model (nn.Module): Network of the layers.
        counts (Mapping): Active weights by full parameter name.

    Raises:
        ValueError: If a layer cannot have the structure or its density.
    """
    fitted = {}
    for name, count in counts.items():
        structure = structures[name]
        layer: Any = model.get_submodule(name.rpartition('.')[0])
        shape = filter_shape(layer.weight)
        why = structure.check(shape, getattr(layer, 'groups', 1))
        if isinstance(layer, _ConvTransposeNd) and structure.describe() != {
            'type': 'Unstructured'
        }:
            why = 'its first dimension is not filters but inputs'
        size, only = prod(shape), structure.density
        if only is not None and count < size and abs(count - only * size) > 1:
            why = (
                f'it leaves {only:g} of the weights or all of them, and '
                f'sparsity and distribution leave {count / size:g}'
            )
        if why:
            raise UserError(
                f'structure={structure} does '
                f'not fit {name!r} of shape {shape}: {why}; exclude the '
                'layer, or choose another structure or sparsity.'
            )
        fitted[name] = structure.fit(shape, count)
    return fitted


def rounding(
    structures: Mapping[str, Structure],
    size: int,
    asked: Mapping[str, int],
    found: Mapping[str, int],
) -> str:
    """Return how structures round the density of all masks, or ''."""
    before, after = sum(asked.values()), sum(found.values())
    if before == after:
        return ''
    kinds = {type(structure).__name__ for structure in structures.values()}
    names = ', '.join(sorted(kinds - {'Unstructured'}))
    return (
        f'structure={names!r} rounds density {before / size:.6f} to '
        f'{after / size:.6f}'
    )


def check_structures(
    saved: Mapping[str, Any],
    structures: Mapping[str, Structure],
    parameters: Mapping[str, nn.Parameter],
) -> None:
    """Refuse masks of other structures than a run's.

    Args:
        saved (Mapping): State of mask training. Old releases saved no
            structure.
        structures (Mapping): Structure of each mask in the run.
        parameters (Mapping): Masked parameters of the run, by name.

    Raises:
        ValueError: If they differ, or a mask is not of the structure.
    """
    for name, mask in saved['masks'].items():
        if (structure := structures.get(name)) is None:
            continue  # Refused by the names of the masks.
        own = saved.get('groups', {}).get(name, saved)
        there = dict(own.get('structure', {'type': 'Unstructured'}))
        if there != structure.describe():
            rule = (
                f'algorithm=dict(type={own.get("algorithm", "RigL")!r}, '
                f'structure={describe_structure(there)})'
            )
            if own is not saved:
                rule = f'groups={{{name!r}: dict({rule})}}'
            raise UserError(
                f'The saved masks have structure={describe_structure(there)} '
                f'for {name!r} and the algorithm of this run has '
                f'{structure}; use that of the saved run, '
                f'{rule}.'
            )
        if not structure.has(filters_first(mask, parameters.get(name))):
            raise UserError(
                f'The saved mask of {name!r} does not have structure='
                f'{structure}: the file was changed after it '
                'was saved.'
            )


def describe_structure(structure: Mapping[str, Any]) -> str:
    """Write a structure as a config does."""
    options = ', '.join(f'{k}={v!r}' for k, v in structure.items())
    return f'dict({options})' if len(structure) > 1 else f'{options[5:]}'
