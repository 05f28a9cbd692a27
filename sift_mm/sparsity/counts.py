"""Number of active weights as a function of the optimizer step."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from sift_mm.sparsity.algorithms import Algorithm
from sift_mm.sparsity.schedules import DropFraction, UpdateSchedule

#: What gives a run its counts, for messages.
OPTIONS_OF_COUNTS = (
    'the sparsity, distribution and algorithm of that run, and, where its '
    'density changes, its interval, end, drop_fraction and length'
)


@dataclass(frozen=True)
class CountSchedule:
    """Active weights of each layer from one mask update to the next.

    Args:
        algorithm (Algorithm): Algorithm, which has the density.
        shapes (Mapping): Weight shapes by name.
        final (Mapping): Active weights after the last update, by name.
        updates (UpdateSchedule, optional): Schedule of updates; None for
            masks that stay.
        drop_fraction (DropFraction): Schedule of the drop fraction.
    """

    algorithm: Algorithm
    shapes: Mapping[str, tuple[int, ...]]
    final: Mapping[str, int]
    updates: UpdateSchedule | None
    drop_fraction: DropFraction

    @property
    def changes(self) -> bool:
        """True if the number of active weights may change."""
        return self.updates is not None and self.algorithm.changes_density

    def last_due(self, step: int) -> int:
        """Return the last step, up to a step, that updates masks; else 0."""
        return self.updates.last_due(step) if self.updates else 0

    def plan(self, step: int) -> tuple[Any, ...]:
        """Return what must be equal on all ranks at a step."""
        plan = self.updates, self.drop_fraction
        return (*plan, self.at(step), self.final) if self.changes else plan

    def saved(self, state: Mapping[str, Any]) -> dict[str, int]:
        """Return the active weights that a saved run's masks must have."""
        if not self.changes:
            return dict(self.final)
        return self.at(state.get('counted', state['steps']))

    def at(self, step: int) -> dict[str, int]:
        """Return the active weights after an optimizer step, by name."""
        due = self.last_due(step)
        if not self.changes or due == self.last_due(self.end):
            return dict(self.final)
        progress = due / self.last_due(self.end)
        fraction = self.drop_fraction.at(due, self.end) if due else 0.0
        found = {}
        for name, shape in self.shapes.items():
            size = prod(shape)
            density = self.algorithm.density(
                self.final[name] / size, progress, fraction
            )
            wanted = min(size, max(1, round(density * size)))
            found[name] = self.algorithm.structure.fit(shape, wanted)
        return found

    @property
    def end(self) -> int:
        """Step of the last update, or a little later; 0 without updates."""
        return self.updates.end if self.updates else 0

    def why_still(self) -> str:
        """Return why no update will move a weight, or ''."""
        if self.updates is None:
            return ''
        if self.at(0) != dict(self.final):
            return ''
        if not self.algorithm.regrows:
            return (
                f'Masks will never change: {type(self.algorithm).__name__} '
                'starts at the final density. Choose a smaller initial '
                "sparsity of it or the algorithm 'Static'."
            )
        first, end = self.updates.interval, self.updates.end
        if self.drop_fraction.at(first, end) > 0:
            return ''
        return (
            f'Masks will never change: the first update, at step {first} of '
            f'{end}, has the drop fraction 0. Choose a shorter interval, a '
            "drop_fraction above 0 or the algorithm 'Static'."
        )

    def _intervals(self, steps: int) -> Iterator[tuple[int, int]]:
        """Yield each update step, and the steps that its masks are used."""
        if not self.changes or self.updates is None:
            yield 0, steps
            return
        dues = range(0, min(self.end, steps - 1) + 1, self.updates.interval)
        for due, following in zip(dues, [*dues[1:], steps], strict=True):
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
