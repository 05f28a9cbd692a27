"""A mask update: report, new masks and uninterrupted writing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from sift_mm.checkpoint.packing import count
from sift_mm.errors import UserError
from sift_mm.orientation import filters_first
from sift_mm.sparsity.algorithms import Growth, LayerState
from sift_mm.sparsity.counts import CountSchedule
from sift_mm.sparsity.masks import MaskSet
from sift_mm.sparsity.metrics import MaskHistory
from sift_mm.sparsity.optimizers import slots_of
from sift_mm.sparsity.random import generator_for


@dataclass(frozen=True)
class UpdateReport:
    """Report of one mask update.

    Args:
        step (int): Optimizer step, counted from 1.
        drop_fraction (float): Share of the active weights that was dropped,
            the largest of all groups.
        moved (float): Share of the active weights with a new position.
        skipped (str): Why the update was skipped, or ''.
    """

    step: int
    drop_fraction: float
    moved: float
    skipped: str = ''


@dataclass
class MaskUpdate:
    """Computation of masks, history and means after a step, yet unwritten.

    New masks are computed in two halves around the optimizer's step.

    Args:
        step (int): Number of the step, counted from 1.
        masks (MaskSet): Masks, which do not change.
        counts (CountSchedule): Algorithms and schedules.
        optimizer (Optimizer): Optimizer, for its slots.
        seed (int): Seed of the run.
        history (MaskHistory): History, then that with the new masks.
        momentum (Mapping): Running means of the dense gradients.
        live (list, optional): Names of the layers to update; None for a step
            without update.
        targets (Mapping): Active weights after the update, by name.
        final (Mapping): Active weights after the last update, by name.

    Attributes:
        new (dict): New masks by name.
        report (UpdateReport, optional): Report, if an update was due.
    """

    step: int
    masks: MaskSet
    counts: CountSchedule
    optimizer: Optimizer
    seed: int
    history: MaskHistory
    momentum: Mapping[str, Tensor]
    live: list[str] | None = None
    targets: Mapping[str, int] = field(default_factory=dict)
    final: Mapping[str, int] = field(default_factory=dict)
    growth: dict[str, Growth] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    new: dict[str, Tensor] = field(default_factory=dict)
    report: UpdateReport | None = None

    def _state(self, name: str, draw: str) -> LayerState:
        parameter = self.masks.parameters[name]
        tensors = (
            self.masks[name],
            parameter.detach(),
            self.gradients.get(name, parameter.grad),
            slots_of(self.optimizer, parameter),
            self.momentum.get(name),
        )
        # Slots have the weight's shape.
        mask, weight, gradient, slots, mean = tree_map_only(
            Tensor, lambda tensor: filters_first(tensor, parameter), tensors
        )
        return LayerState(
            mask,
            weight,
            gradient,
            slots,
            self.step,
            generator_for(self.seed, self.step, f'{name}{draw}'),
            mean,
            self.targets[name],
            self.final[name],
        )

    def shortlist(self) -> None:
        """Compute growth scores from the dense gradients, before the step."""
        for name in self.live or ():
            own, parameter = self.counts.of(name), self.masks.parameters[name]
            if own.algorithm.drops_by_gradient and parameter.grad is not None:
                self.gradients[name] = parameter.grad.detach().clone()
            if own.algorithm.needs_gradient:
                self.growth[name] = own.algorithm.shortlist(
                    self._state(name, ''), own.fraction(self.step)
                )

    @torch.no_grad()
    def plan(self) -> None:
        """Compute the new masks without writing them."""
        kept_count = active_count = 0
        largest = 0.0
        for name in self.live or ():
            mask, own = self.masks[name], self.counts.of(name)
            fraction = own.fraction(self.step)
            largest = max(largest, fraction)
            if name in self.growth:
                # Random numbers must differ from those of the growth score.
                layer = self._state(name, '/drop')
                new = own.algorithm.exchange(layer, self.growth.pop(name))
            else:
                layer = self._state(name, '')
                new = own.algorithm.update(layer, fraction)
            new = filters_first(new, self.masks.parameters[name])
            if (after := count(new)) != (wanted := self.targets[name]):
                structure = type(own.algorithm.structure).__name__
                raise UserError(
                    f'{type(own.algorithm).__name__} with structure='
                    f'{structure!r} made {after} active weights where '
                    f'{wanted} are due in {name!r}: drop and grow have to '
                    'give the asked numbers.'
                )
            kept_count += count(mask & new)
            active_count += after
            self.new[name] = new
        self.history = self.history.after(self.new)
        moved = 1 - kept_count / active_count if active_count else 0.0
        self.report = UpdateReport(self.step, largest, moved)


def finish(write: Callable[[], None]) -> None:
    """Run a function to its end, and again if an exception interrupts it.

    Args:
        write (Callable): Function that may run several times.
    """
    try:
        write()
    except KeyboardInterrupt:
        finish(write)  # Impatient users press Ctrl-C twice.
        raise
    except BaseException:
        write()
        raise


def why_to_skip(optimizer: Optimizer) -> str:
    """Return why masks cannot be updated from the gradients, or ''."""
    gradients = [
        p.grad._values() if p.grad.is_sparse else p.grad
        for group in optimizer.param_groups
        for p in group['params']
        if p.grad is not None and p.grad.numel()
    ]
    gradients = [
        torch.view_as_real(g) if g.is_complex() else g
        for g in gradients
        if g.numel()
    ]
    if not gradients:
        return 'no parameter had a gradient'
    # Several times faster on the CPU than norms, which are not vectorized.
    extremes = [e for gradient in gradients for e in gradient.aminmax()]
    device = extremes[0].device
    finite = torch.stack([e.float().to(device) for e in extremes]).isfinite()
    return '' if bool(finite.all()) else 'a gradient was not finite'
