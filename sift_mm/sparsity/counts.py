"""Number of active weights as a function of the optimizer step."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import prod
from typing import Any

from sift_mm.sparsity.algorithms import Algorithm
from sift_mm.sparsity.schedules import DropFraction, UpdateSchedule

#: What gives a run its counts, for messages.
OPTIONS_OF_COUNTS = (
    'the sparsity, distribution, groups and algorithm of that run, and, where '
    'its density changes, its interval, end, drop_fraction and length'
)


@dataclass(frozen=True)
class Assignment:
    """Algorithm and schedules of the masks of some layers.

    Args:
        algorithm (Algorithm): Algorithm, which has the density.
        updates (UpdateSchedule, optional): Schedule of updates; None for
            masks that stay.
        drop_fraction (DropFraction): Schedule of the drop fraction.
    """

    algorithm: Algorithm
    updates: UpdateSchedule | None
    drop_fraction: DropFraction

    @property
    def changes(self) -> bool:
        """True if the number of active weights may change."""
        return self.updates is not None and self.algorithm.changes_density

    @property
    def end(self) -> int:
        """Step of the last update, or a little later; 0 without updates."""
        return self.updates.end if self.updates else 0

    def last_due(self, step: int) -> int:
        """Return the last step, up to a step, that updates masks; else 0."""
        return self.updates.last_due(step) if self.updates else 0

    def is_due(self, step: int, counted: int) -> bool:
        """Return True if a step updates masks.

        Args:
            step (int): Optimizer step, counted from 1.
            counted (int): Step of the last update of counts: a skipped update
                of the density is made up at the next step.
        """
        late = self.changes and self.last_due(step) > counted
        return late or bool(self.updates and self.updates.is_due(step))

    def fraction(self, step: int) -> float:
        """Return the drop fraction of an update at a step."""
        return self.drop_fraction.at(min(step, self.end), self.end)

    def count(self, shape: tuple[int, ...], final: int, step: int) -> int:
        """Return the active weights of a layer after an optimizer step.

        Args:
            shape (tuple): Shape of the weight.
            final (int): Active weights after the last update.
            step (int): Optimizer step.
        """
        due, last = self.last_due(step), self.last_due(self.end)
        if not self.changes or due == last:
            return final
        size, fraction = prod(shape), self.fraction(due) if due else 0.0
        density = self.algorithm.density(final / size, due / last, fraction)
        wanted = min(size, max(1, round(density * size)))
        return self.algorithm.structure.fit(shape, wanted)

    def describe(self) -> dict[str, Any]:
        """Return names and options, as plain values for the state."""
        own = {
            key: value
            for key, value in vars(self.algorithm).items()
            if key[0] != '_' and isinstance(value, (bool, int, float, str))
        }
        more = {'algorithm_options': own} if own else {}
        return {
            'algorithm': type(self.algorithm).__name__,
            'structure': self.algorithm.structure.describe(),
            'interval': self.updates.interval if self.updates else 0,
            'end': self.end,
            'drop_fraction': {
                'type': type(self.drop_fraction).__name__,
                **asdict(self.drop_fraction),
            },
            **more,
        }


@dataclass(frozen=True)
class CountSchedule:
    """Active weights of each layer from one mask update to the next.

    Args:
        default (Assignment): Assignment of layers outside groups.
        shapes (Mapping): Weight shapes by name.
        final (Mapping): Active weights after the last update, by name.
        groups (Mapping): Assignments of the layers of groups, by name.
    """

    default: Assignment
    shapes: Mapping[str, tuple[int, ...]]
    final: Mapping[str, int]
    groups: Mapping[str, Assignment] = field(default_factory=dict)

    def of(self, name: str) -> Assignment:
        """Return the assignment of a layer."""
        return self.groups.get(name, self.default)

    @cached_property
    def parts(self) -> list[tuple[Assignment, list[str]]]:
        """Each assignment, with the names of its layers."""
        parts: dict[int, tuple[Assignment, list[str]]] = {}
        for name in self.shapes:
            own = self.of(name)
            parts.setdefault(id(own), (own, []))[1].append(name)
        return [*parts.values()]

    @cached_property
    def changes(self) -> bool:
        """True if the number of active weights may change."""
        return any(own.changes for own, _ in self.parts)

    @cached_property
    def updates(self) -> bool:
        """True if a mask is ever updated."""
        return any(own.updates for own, _ in self.parts)

    def due(self, step: int, counted: int) -> set[str]:
        """Return the layers to update at a step, see `Assignment.is_due`."""
        due = [names for own, names in self.parts if own.is_due(step, counted)]
        return {name for names in due for name in names}

    def last_due(self, step: int) -> int:
        """Return the last step, up to a step, that updates masks; else 0."""
        return max(own.last_due(step) for own, _ in self.parts)

    def averaged(self, step: int) -> list[str]:
        """Return the layers whose algorithms read mean gradients at a step."""
        return [
            name
            for own, names in self.parts
            if own.algorithm.needs_momentum and step <= own.end
            for name in names
        ]

    def plan(self, step: int) -> tuple[Any, ...]:
        """Return what must be equal on all ranks at a step."""
        plan = tuple((own.describe(), names) for own, names in self.parts)
        return (*plan, self.at(step), self.final) if self.changes else plan

    def saved(self, state: Mapping[str, Any]) -> dict[str, int]:
        """Return the active weights that a saved run's masks must have."""
        if not self.changes:
            return dict(self.final)
        return self.at(state.get('counted', state['steps']))

    def at(self, step: int) -> dict[str, int]:
        """Return the active weights after an optimizer step, by name."""
        return {
            name: self.of(name).count(shape, self.final[name], step)
            for name, shape in self.shapes.items()
        }

    def describe(self) -> dict[str, Any]:
        """Return options of the run and its groups, for the state."""
        groups = {name: own.describe() for name, own in self.groups.items()}
        more = {'groups': groups} if groups else {}
        return self.default.describe() | more

    def why_still(self) -> str:
        """Return why no update will move a weight of a group, or ''."""
        first = self.at(0)
        for own, names in self.parts:
            if any(first[name] != self.final[name] for name in names):
                continue
            if why := _why_still(own):
                return f'{names[0]}: {why}' if self.groups else why
        return ''

    def _intervals(self, steps: int) -> Iterator[tuple[int, int]]:
        """Yield each update step, and the steps that its masks are used."""
        dues = {0}
        for own, _ in self.parts:
            if own.changes and own.updates is not None:
                last = min(own.end, steps - 1)
                dues |= {*range(0, last + 1, own.updates.interval)}
        starts = sorted(dues)
        for due, following in zip(starts, [*starts[1:], steps], strict=True):
            yield due, following - due

    def course(self, steps: int) -> tuple[float, float]:
        """Return the density of all layers at the start, and its mean.

        Args:
            steps (int): Optimizer steps of the training.
        """
        sizes = {name: prod(shape) for name, shape in self.shapes.items()}
        mean, size = self.mean_densities(steps), sum(sizes.values())
        active = sum(mean[name] * sizes[name] for name in sizes)
        return sum(self.at(0).values()) / size, active / size

    def mean_densities(self, steps: int) -> dict[str, float]:
        """Return the density of each layer, averaged over a training.

        FLOPs are linear in the densities, so that the FLOPs of these are the
        mean FLOPs.

        Args:
            steps (int): Optimizer steps of the training.
        """
        total = dict.fromkeys(self.shapes, 0)
        for due, length in self._intervals(steps):
            for name, count in self.at(due).items():
                total[name] += count * length
        return {
            name: total[name] / (steps * prod(shape))
            for name, shape in self.shapes.items()
        }


def _why_still(own: Assignment) -> str:
    """Return why updates at the final density move no weight, or ''."""
    if own.updates is None:
        return ''
    if not own.algorithm.regrows:
        return (
            f'Masks will never change: {type(own.algorithm).__name__} '
            'starts at the final density. Choose a smaller initial '
            "sparsity of it or the algorithm 'Static'."
        )
    first, end = own.updates.interval, own.end
    if own.fraction(first) > 0:
        return ''
    return (
        f'Masks will never change: the first update, at step {first} of '
        f'{end}, has the drop fraction 0. Choose a shorter interval, a '
        "drop_fraction above 0 or the algorithm 'Static'."
    )
