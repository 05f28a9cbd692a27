"""Mask training: what happens to masks at an optimizer step."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sift_mm.sparsity.algorithms import Algorithm
from sift_mm.sparsity.masks import MaskSet
from sift_mm.sparsity.metrics import MaskHistory
from sift_mm.sparsity.random import generator_for
from sift_mm.sparsity.schedules import DropFraction, UpdateSchedule
from sift_mm.sparsity.selection import keep_only_

PLACEMENTS = ('after_step', 'replace_step')


@dataclass(frozen=True)
class UpdateReport:
    """What one mask update did.

    Args:
        step (int): Optimizer step, counted from 1.
        drop_fraction (float): Share of active weights that was dropped.
        moved (float): Share of active weights that are elsewhere now.
        skipped (bool): True if nothing was done, because a gradient was not
            finite.
    """

    step: int
    drop_fraction: float
    moved: float
    skipped: bool = False


class MaskTrainer:
    """Trains the masks of a model along with its weights.

    Call :meth:`step` in place of ``optimizer.step()``, once the gradients
    are complete: after backward, accumulation, averaging over ranks and
    unscaling, before clipping.

    Args:
        masks (MaskSet): The masks, changed in place.
        algorithm (Algorithm): How masks change.
        schedule (UpdateSchedule, optional): When; None for never.
        drop_fraction (DropFraction): How much.
        seed (int): Seed of the run.
        placement (str): 'after_step': the optimizer steps, then masks are
            updated from the new weights and the gradient of this step (the
            Sparse-IFT code). 'replace_step': on an update the optimizer
            does not step (RigL, algorithm 1).

    The optimizer must leave a weight of value, gradient and slots zero where
    it is, as SGD, Adam and all element-wise ones do. One that mixes weights,
    Muon say, is found out at the first step.

    Raises:
        ValueError: If the placement is unknown.
    """

    def __init__(
        self,
        masks: MaskSet,
        algorithm: Algorithm,
        schedule: UpdateSchedule | None,
        drop_fraction: DropFraction,
        seed: int = 0,
        placement: str = 'after_step',
    ) -> None:
        if placement not in PLACEMENTS:
            raise ValueError(
                f'Unknown placement {placement!r} of the mask '
                f'update; choose one of {PLACEMENTS}.'
            )
        self.masks = masks
        self.algorithm = algorithm
        self.schedule = schedule if algorithm.dynamic else None
        self.drop_fraction = drop_fraction
        self.seed = seed
        self.placement = placement
        self.history = MaskHistory(masks)
        self.steps = 0
        self.report: UpdateReport | None = None
        self._optimizer_is_checked = False

    def enforce(self, optimizer: Optimizer) -> None:
        """Set weights and optimizer slots outside the masks to zero."""
        for name, mask in self.masks.items():
            self._keep(self.masks.parameters[name], mask, optimizer)

    def step(self, optimizer: Optimizer, run: Callable[[], Any]) -> None:
        """One optimizer step under the masks.

        Gradients are masked before ``run``, so that a clipping norm does not
        count weights that do not exist. Between two updates this is all that
        happens: weights and slots outside the masks are zero, and stay zero
        at gradient zero.

        Args:
            optimizer (Optimizer): Whose parameters hold the gradients.
            run (Callable): Clips and steps. Not called where an update
                replaces the step.

        Raises:
            TypeError: If the optimizer moves weights outside the masks.
        """
        self.steps += 1
        due = self.schedule is not None and self.schedule.is_due(self.steps)
        self.report = None
        if due and not _finite_gradients(optimizer):
            # Ranking by inf or nan would move masks at random; a loss
            # scaler skips such a step, so no mask may move either.
            self.report = UpdateReport(self.steps, 0.0, 0.0, skipped=True)
            due = False
        # A parameter that is frozen or took no part keeps its mask.
        live = {
            n: p
            for n, p in self.masks.parameters.items()
            if p.grad is not None and p.requires_grad
        }
        if due and self.placement == 'replace_step':
            self._update(optimizer, live, {n: p.grad for n, p in live.items()})
            return
        dense: dict[str, Tensor | None] = {}
        if due and self.algorithm.needs_gradient:
            # The only copy of dense gradients there is, for this step.
            dense = {
                n: p.grad.clone()  # type: ignore[union-attr]
                for n, p in live.items()
            }
        self.masks.keep_gradients_()
        run()
        if not self._optimizer_is_checked:
            self._check_optimizer(optimizer)
        if due:
            self._update(optimizer, live, dense)

    def _check_optimizer(self, optimizer: Optimizer) -> None:
        self._optimizer_is_checked = True
        for name, mask in self.masks.items():
            weight = self.masks.parameters[name].detach()
            if weight.masked_fill(mask, 0).any():
                raise TypeError(
                    f'{type(optimizer).__name__} moved weights of {name!r} '
                    'outside the mask, where gradient and slots are zero; '
                    'mask training needs an optimizer that works weight by '
                    'weight, such as SGD or AdamW (and enforce() called once '
                    'before the first step).'
                )

    @torch.no_grad()
    def _update(
        self,
        optimizer: Optimizer,
        live: Mapping[str, nn.Parameter],
        gradients: dict[str, Tensor | None],
    ) -> None:
        assert self.schedule is not None
        fraction = self.drop_fraction.at(self.steps, self.schedule.end)
        kept_count = active_count = 0
        for name, parameter in live.items():
            mask = self.masks[name]
            new = self.algorithm.update(
                mask,
                parameter,
                gradients.pop(name, None),
                fraction,
                generator_for(self.seed, self.steps, name),
            )
            kept = mask & new
            kept_count += int(kept.count_nonzero())
            active_count += int(new.count_nonzero())
            # Grown positions start at zero, dropped ones leave nothing
            # behind; those dropped and grown at once keep value and slots.
            self._keep(parameter, kept, optimizer)
            mask.copy_(new)
            self.history.record(name, mask)
        moved = 1 - kept_count / active_count if active_count else 0.0
        self.report = UpdateReport(self.steps, fraction, moved)

    @staticmethod
    def _keep(
        parameter: nn.Parameter, mask: Tensor, optimizer: Optimizer
    ) -> None:
        # Looked up afresh each time: load_state_dict replaces the tensors.
        slots = [
            slot
            for slot in optimizer.state.get(parameter, {}).values()
            if isinstance(slot, Tensor)
            and slot.is_floating_point()
            and slot.shape == parameter.shape
        ]
        tensors = [parameter.detach(), *slots]
        keep_only_(tensors, [mask] * len(tensors))

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs: tensors, ints, strings and dicts."""
        return {
            'version': 1,
            'algorithm': type(self.algorithm).__name__,
            'placement': self.placement,
            'seed': self.seed,
            'steps': self.steps,
            'masks': {n: m.cpu().clone() for n, m in self.masks.items()},
            'history': self.history.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore masks, history, step count and seed.

        Raises:
            ValueError: If the masks are not those of this network.
        """
        restored = MaskSet(self.masks.parameters, state['masks'])
        for name, mask in self.masks.items():
            mask.copy_(restored[name])
        self.history.load_state_dict(state['history'])
        self.steps = state['steps']
        self.seed = state['seed']


def _finite_gradients(optimizer: Optimizer) -> bool:
    gradients = [
        p.grad
        for group in optimizer.param_groups
        for p in group['params']
        if p.grad is not None and p.grad.numel()
    ]
    if not gradients:
        return False
    largest = torch._foreach_norm(gradients, float('inf'))
    device = largest[0].device
    return bool(
        torch.stack([n.float().to(device) for n in largest]).isfinite().all()
    )
