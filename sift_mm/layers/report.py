"""Report of what a transformation did to a network."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from sift_mm.errors import UserError
from sift_mm.layers.composite import Composite
from sift_mm.layers.plain import plain_type


@dataclass(frozen=True)
class Replacement:
    """Layer that was replaced.

    Args:
        before (str): The dense layer, with its sizes.
        after (str): The layer in its place, with its sizes.
        flops_ratio (float): FLOPs under masks at the nominal sparsity,
            divided by those of the dense layer (or chain, if widened).
        sparse_parameters (tuple[str, ...]): Full names of masked weights.
    """

    before: str
    after: str
    flops_ratio: float
    sparse_parameters: tuple[str, ...]


@dataclass(frozen=True)
class TransformReport:
    """Report of :func:`transform`.

    Args:
        replaced (Mapping[str, Replacement]): Replaced layers, by name.
        skipped (Mapping[str, str]): Reason of each other layer, by name.
    """

    replaced: Mapping[str, Replacement]
    skipped: Mapping[str, str]

    @property
    def sparse_parameters(self) -> list[str]:
        """Return the full names of all masked weights."""
        return [
            name
            for one in self.replaced.values()
            for name in one.sparse_parameters
        ]

    def __str__(self) -> str:
        lines = [f'{len(self.replaced)} layers replaced:']
        lines += [
            f'  {name}: {one.before} -> {one.after}, FLOPs '
            f'{one.flops_ratio:.4f} of the dense'
            for name, one in self.replaced.items()
        ]
        lines += [f'{len(self.skipped)} left as they were:']
        lines += [f'  {name}: {why}' for name, why in self.skipped.items()]
        return '\n'.join(lines)


class NothingReplaced(UserError):
    """Error of a network without a layer that the family can replace.

    Args:
        report (TransformReport): Report with the reason for each layer.
    """

    def __init__(self, report: TransformReport) -> None:
        super().__init__(f'No layer could be replaced. {report}')
        self.report = report


def find_refused(
    changes: Sequence[Any], objection: Callable[[Sequence[Any]], str]
) -> dict[tuple[str, ...], str]:
    """Return the names of the changes that a network refuses, with reasons.

    Changes whose names differ only in numbers are refused together.

    Args:
        changes (Sequence): Changes with ``names``, the layers' full names.
        objection (Callable): Function that returns why the network cannot
            have some of the changes, or ''.
    """
    reason = objection(changes) if changes else ''
    if not reason:
        return {}
    kinds: dict[str, list[Any]] = defaultdict(list)
    for change in changes:
        kinds[re.sub(r'\d+', '#', ' '.join(change.names))].append(change)
    refused: dict[tuple[str, ...], str] = {}
    for alike in kinds.values():
        why = objection(alike)
        refused |= {change.names: why for change in alike if why}
    return refused or {change.names: reason for change in changes}


def note_refused(
    changes: Sequence[Any],
    refused: Mapping[tuple[str, ...], str],
    skipped: dict[str, str],
) -> None:
    """Note the reasons of refused changes of ``kind`` by layer."""
    for change in changes:
        for name in change.names if change.names in refused else ():
            skipped[name] = (
                f'{change.kind} is read from outside, where its values would '
                f'change ({refused[change.names]})'
            )


def record(name: str, old: nn.Module, new: Any, ratio: float) -> Replacement:
    """Record the replacement of a layer, with its ratio of FLOPs."""
    weights = new.sparse_parameter_names()
    names = tuple(f'{name}.{weight}' for weight in weights)
    return Replacement(_describe(old), _describe(new), ratio, names)


def _describe(layer: nn.Module) -> str:
    if not isinstance(layer, Composite):
        return repr(layer)
    counts = Counter(repr(m) for m in layer.modules() if plain_type(m))
    parts = [f'{n} x {part}' if n > 1 else part for part, n in counts.items()]
    return f'{type(layer).__name__}({", ".join(parts)})'
