"""Schedules of mask updates and of the drop fraction."""

import math
from dataclasses import dataclass
from typing import Any

from sift_mm.errors import UserError
from sift_mm.registry import Registry
from sift_mm.validation import Count, Share, read_arguments


@dataclass(frozen=True)
class UpdateSchedule:
    """Schedule of an update every ``interval`` optimizer steps up to ``end``.

    Args:
        interval (int): Optimizer steps between two updates.
        end (int): Step after which masks stay (T_end).

    Raises:
        ValueError: If there would be no update at all.
    """

    interval: Count
    end: int

    def __post_init__(self) -> None:
        read_arguments(type(self), vars(self))
        if self.interval > self.end:
            raise UserError(
                f'Masks would never be updated: the update interval is '
                f'{self.interval} optimizer steps and the last update is due '
                f'by step {self.end}. Choose a shorter interval or the '
                "algorithm 'Static'."
            )

    def is_due(self, step: int) -> bool:
        """Return True if a step, counted from 1, updates masks."""
        return step % self.interval == 0 and 0 < step <= self.end

    def last_due(self, step: int) -> int:
        """Return the last step, up to a step, that updates masks; else 0."""
        return min(step, self.end) // self.interval * self.interval


@dataclass(frozen=True)
class DropFraction:
    """Base class of schedules of the share of active weights to drop.

    Args:
        initial (float): Share at step 0 (alpha), in [0, 1].

    Raises:
        ValueError: If ``initial`` is outside [0, 1].
    """

    initial: Share = 0.3

    def __post_init__(self) -> None:
        read_arguments(type(self), vars(self))

    def at(self, step: int, end: int) -> float:
        """Return the share at an optimizer step, at most ``end`` (T_end)."""
        raise NotImplementedError


class _DropFractions(Registry[DropFraction]):
    """Registry that accepts numbers too, as the start of a cosine."""

    @property
    def what(self) -> str:
        """Description of the accepted values."""
        return f'a share, a number in [0, 1], or {super().what}'

    def accepts(self, value: Any) -> bool:
        """Return True for a share or the name of a schedule."""
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return 0 <= value <= 1
        return super().accepts(value)

    def build(self, cfg: Any) -> DropFraction:
        """Build a schedule; a number starts a cosine."""
        is_number = isinstance(cfg, (int, float))
        return Cosine(cfg) if is_number else super().build(cfg)


DROP_FRACTIONS = _DropFractions('drop-fraction schedule', DropFraction)


@DROP_FRACTIONS.register
@dataclass(frozen=True)
class Constant(DropFraction):
    """Schedule alpha."""

    def at(self, step: int, end: int) -> float:
        """Return the initial share."""
        return self.initial


@DROP_FRACTIONS.register
@dataclass(frozen=True)
class Linear(DropFraction):
    """Schedule alpha * (1 - t / T_end)."""

    def at(self, step: int, end: int) -> float:
        """Return the share, which falls linearly to 0."""
        return self.initial * (1 - step / end)


@DROP_FRACTIONS.register
@dataclass(frozen=True)
class Cosine(DropFraction):
    """Schedule alpha / 2 * (1 + cos(pi * t / T_end)) (RigL, section 3)."""

    def at(self, step: int, end: int) -> float:
        """Return the share, which falls along half a cosine to 0."""
        return self.initial / 2 * (1 + math.cos(math.pi * step / end))
