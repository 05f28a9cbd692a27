"""When masks are updated, and how much of them."""

import math
from dataclasses import dataclass
from typing import Any

from sift_mm.errors import UserError
from sift_mm.registry import Registry
from sift_mm.validation import Count, Share, read_arguments


@dataclass(frozen=True)
class UpdateSchedule:
    """An update every ``interval`` optimizer steps, the last at ``end``.

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
        """Whether step number ``step``, counted from 1, updates masks."""
        return step % self.interval == 0 and 0 < step <= self.end


@dataclass(frozen=True)
class DropFraction:
    """Share of the active weights dropped at an update.

    Args:
        initial (float): The share at step 0 (alpha), in [0, 1].

    Raises:
        ValueError: If ``initial`` is outside [0, 1].
    """

    initial: Share = 0.3

    def __post_init__(self) -> None:
        read_arguments(type(self), vars(self))

    def at(self, step: int, end: int) -> float:
        """The share at an optimizer step, at most ``end`` (T_end)."""
        raise NotImplementedError


class _DropFractions(Registry[DropFraction]):
    """Registry that takes a number too: the start of a cosine."""

    @property
    def what(self) -> str:
        """The schedules, and a number."""
        return f'a share, a number in [0, 1], or {super().what}'

    def accepts(self, value: Any) -> bool:
        """Return whether it is a share or names a schedule."""
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
    """alpha, always."""

    def at(self, step: int, end: int) -> float:
        """The initial share."""
        return self.initial


@DROP_FRACTIONS.register
@dataclass(frozen=True)
class Linear(DropFraction):
    """alpha * (1 - t / T_end)."""

    def at(self, step: int, end: int) -> float:
        """Falls on a straight line to 0."""
        return self.initial * (1 - step / end)


@DROP_FRACTIONS.register
@dataclass(frozen=True)
class Cosine(DropFraction):
    """alpha / 2 * (1 + cos(pi * t / T_end)) (RigL, section 3)."""

    def at(self, step: int, end: int) -> float:
        """Falls on half a cosine to 0."""
        return self.initial / 2 * (1 + math.cos(math.pi * step / end))
