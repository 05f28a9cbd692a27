"""Mask training: what happens to masks at an optimizer step."""

import weakref
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sift_mm import arguments
from sift_mm.errors import Mistake, MistakenCall, MistakenType
from sift_mm.sparsity.agreement import check_agreement
from sift_mm.sparsity.algorithms import Algorithm, Growth
from sift_mm.sparsity.execution import SparseExecution
from sift_mm.sparsity.grown import GrownSteps, YoungWeights
from sift_mm.sparsity.masks import MaskSet
from sift_mm.sparsity.metrics import MaskHistory
from sift_mm.sparsity.optimizers import (
    check_optimizer,
    keep_only_with_slots_,
)
from sift_mm.sparsity.random import generator_for
from sift_mm.sparsity.schedules import DropFraction, UpdateSchedule
from sift_mm.sparsity.selection import meet_

Placement = Literal['after_step', 'replace_step']
# Of the state; raised when an older reader would go wrong on it.
STATE_VERSION = 1
# Weights of a parameter that are looked at to see whether a step moved any.
_SAMPLE = 4096


@dataclass(frozen=True)
class UpdateReport:
    """What one mask update did.

    Args:
        step (int): Optimizer step, counted from 1.
        drop_fraction (float): Share of active weights that was dropped.
        moved (float): Share of active weights that are elsewhere now.
        skipped (str): Why nothing was done, or ''.
    """

    step: int
    drop_fraction: float
    moved: float
    skipped: str = ''


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
        grown_steps (str): 'free': a weight that is grown late moves as
            Adam has it, several times faster than a fresh one. 'bounded':
            by no more than the learning rate a step, until the next update
            (Adam and AdamW only, see :class:`YoungWeights`).

    The optimizer must leave a weight of value, gradient and slots zero where
    it is, as SGD, Adam and all element-wise ones do. One that mixes weights,
    Muon say, is found out by :meth:`enforce`, and one that cannot be tried
    there at the first step that moves any weight.

    Between backward pass and update, which the optimizer's step lies between,
    an update of RigL holds an eighth of a byte a weight, and 8 bytes for each
    of the few weights that may or may not be grown.

    Raises:
        ValueError: If placement or grown_steps is unknown.
    """

    def __init__(
        self,
        masks: MaskSet,
        algorithm: Algorithm,
        schedule: UpdateSchedule | None,
        drop_fraction: DropFraction,
        seed: int = 0,
        placement: Placement = 'after_step',
        grown_steps: GrownSteps = 'free',
    ) -> None:
        arguments.read('placement', placement, Placement)
        arguments.read('grown_steps', grown_steps, GrownSteps)
        self.masks = masks
        self.algorithm = algorithm
        self.schedule = schedule if algorithm.dynamic else None
        self.drop_fraction = drop_fraction
        self.seed = seed
        self.placement = placement
        self.grown_steps = grown_steps
        self._young: YoungWeights | None = None
        if grown_steps == 'bounded':
            self._young = YoungWeights(masks.parameters)
        self.history = MaskHistory(masks)
        self.steps = 0
        self.report: UpdateReport | None = None
        self.execution: SparseExecution | None = None
        self._optimizer_is_checked = False
        self._in_step = False

    @property
    def needs_dense_gradient(self) -> bool:
        """Whether the next step reads gradients outside the masks."""
        return self.algorithm.needs_gradient and self._is_due(self.steps + 1)

    def _is_due(self, step: int) -> bool:
        return self.schedule is not None and self.schedule.is_due(step)

    def execute(self, execution: SparseExecution) -> None:
        """From now on, keep an execution of the network up to date."""
        self.execution = execution
        self._tell_execution()

    def _tell_execution(self, masks_changed: bool = True) -> None:
        if self.execution is not None:
            if masks_changed:
                self.execution.follow_masks()
            self.execution.expect(self.needs_dense_gradient)

    def guard(self, optimizer: Optimizer) -> None:
        """From now on, refuse steps of an optimizer that pass this trainer.

        For as long as the trainer exists. Without masks a plain step makes
        the network dense again.
        """
        reference = weakref.ref(self)  # An optimizer may outlive its masks.

        def refuse(*_: Any) -> None:
            trainer = reference()
            if trainer is not None and not trainer._in_step:
                raise MistakenCall(
                    'optimizer.step() would move weights outside the masks; '
                    'call the step() of SparseTraining (or of MaskTrainer) '
                    'in its place.'
                )

        optimizer.register_step_pre_hook(refuse)

    def enforce(self, optimizer: Optimizer) -> None:
        """Set weights and optimizer slots outside the masks to zero.

        Raises:
            TypeError: If the optimizer would not keep them there, see
                :func:`check_optimizer`; nothing has been touched then.
        """
        check_optimizer(optimizer, self.masks.parameters)
        if self._young is not None:
            self._young.check(optimizer)
        for name, mask in self.masks.items():
            keep_only_with_slots_(self.masks.parameters[name], optimizer, mask)

    # A compiled train_step, as MMEngine's `compile` makes one, would trace
    # each update anew.
    @torch.compiler.disable
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
            RuntimeError: If an update is due and the masks of the ranks
                differ.
        """
        self.steps += 1
        due = self._is_due(self.steps)
        if due:
            check_agreement(self.masks, self.steps)
        self._step(optimizer, run, due)
        self._tell_execution(masks_changed=due)
        if self.execution is not None:
            # Masks are trained by all ranks alike, and updated seldom.
            self.execution.adopt(may_wait=due)

    def _step(
        self, optimizer: Optimizer, run: Callable[[], Any], due: bool
    ) -> None:
        self.report = None
        if due and (reason := _why_to_skip(optimizer)):
            # Ranking by inf or nan would move masks at random; a loss
            # scaler skips such a step, so no mask may move either.
            self.report = UpdateReport(self.steps, 0.0, 0.0, reason)
            due = False
        # A parameter that is frozen or took no part keeps its mask.
        live = {
            n: p
            for n, p in self.masks.parameters.items()
            if p.grad is not None and p.requires_grad
        }
        if due and self.placement == 'replace_step':
            self._update(optimizer, live, {})
            return
        growth: dict[str, Growth | None] = {}
        if due and self.algorithm.needs_gradient:
            growth = {
                n: self.algorithm.shortlist(
                    self.masks[n],
                    p.detach(),
                    p.grad,
                    self._fraction(),
                    generator_for(self.seed, self.steps, n),
                )
                for n, p in live.items()
            }
        self.masks.keep_gradients_()
        before = None if self._optimizer_is_checked else self._sample()
        self._in_step = True
        try:
            young = self._young
            with young.bounded(optimizer) if young else nullcontext():
                run()
        finally:
            self._in_step = False
        if before is not None and not torch.equal(before, self._sample()):
            self._check_optimizer(optimizer)
        if due:
            self._update(optimizer, live, growth)

    def _sample(self) -> Tensor:
        """Some weights of each parameter, to see whether a step moved any."""
        device = next(iter(self.masks.values())).device
        samples = [
            p.detach().flatten()[:: -(-p.numel() // _SAMPLE)].double()
            for p in self.masks.parameters.values()
        ]
        return torch.cat([sample.to(device) for sample in samples])

    def _check_optimizer(self, optimizer: Optimizer) -> None:
        self._optimizer_is_checked = True
        for name, mask in self.masks.items():
            weight = self.masks.parameters[name].detach()
            if weight.masked_fill(mask, 0).any():
                raise MistakenType(
                    f'{type(optimizer).__name__} moved weights of {name!r} '
                    'outside the mask, where gradient and slots are zero; '
                    'mask training needs an optimizer that works weight by '
                    'weight, such as SGD or AdamW (and enforce() called once '
                    'before the first step).'
                )

    def _fraction(self) -> float:
        assert self.schedule is not None
        return self.drop_fraction.at(self.steps, self.schedule.end)

    @torch.no_grad()
    def _update(
        self,
        optimizer: Optimizer,
        live: Mapping[str, nn.Parameter],
        growth: dict[str, Growth | None],
    ) -> None:
        fraction = self._fraction()
        kept_count = active_count = 0
        for name, parameter in live.items():
            mask = self.masks[name]
            weight = parameter.detach()
            if name not in growth:
                new = self.algorithm.update(
                    mask,
                    weight,
                    parameter.grad if self.algorithm.needs_gradient else None,
                    fraction,
                    generator_for(self.seed, self.steps, name),
                )
            elif (scores := growth.pop(name)) is None:
                new = mask
            else:
                # Other numbers than the growth score had.
                generator = generator_for(
                    self.seed, self.steps, f'{name}/drop'
                )
                new = self.algorithm.exchange(mask, weight, scores, generator)
            # Grown positions start at zero, dropped ones leave nothing
            # behind; those dropped and grown at once keep value and slots.
            kept, active = meet_(mask, new)
            kept_count += kept
            active_count += active
            keep_only_with_slots_(parameter, optimizer, mask)
            if self._young is not None:
                self._young.replace(name, new & ~mask)
            mask.copy_(new)
            self.history.record(name, mask)
        moved = 1 - kept_count / active_count if active_count else 0.0
        self.report = UpdateReport(self.steps, fraction, moved)

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs: tensors, ints, strings and dicts.

        Interval, end and drop fraction are there to be compared with those
        of the resumed run, which has its own; 0 and 0 for masks that are
        never updated.
        """
        schedule = self.schedule
        return {
            'version': STATE_VERSION,
            'algorithm': type(self.algorithm).__name__,
            'placement': self.placement,
            'grown_steps': self.grown_steps,
            'young': self._young.state_dict() if self._young else {},
            'interval': schedule.interval if schedule else 0,
            'end': schedule.end if schedule else 0,
            'drop_fraction': {
                'type': type(self.drop_fraction).__name__,
                **asdict(self.drop_fraction),
            },
            'execution': self.execution.mode if self.execution else 'dense',
            'choices': self.execution.choices() if self.execution else {},
            'seed': self.seed,
            'steps': self.steps,
            'masks': {n: m.cpu().clone() for n, m in self.masks.items()},
            'history': self.history.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore masks, history, step count and seed; all of it, or nothing.

        Raises:
            ValueError: If the state is of a newer version, lacks a part, or
                is of another network.
        """
        if state.get('version', STATE_VERSION) > STATE_VERSION:
            raise Mistake(
                f'The state of the masks is of version {state["version"]} and '
                f'this release reads up to {STATE_VERSION}; update sift_mm.'
            )
        missing = {'masks', 'history', 'steps', 'seed'} - state.keys()
        missing |= {'ever', 'always'} - state.get('history', {}).keys()
        if missing:
            raise Mistake(
                'This is not the whole state of a mask trainer: '
                f'{", ".join(sorted(missing))} missing.'
            )
        restored = MaskSet(self.masks.parameters, state['masks'])
        self.history.load_state_dict(state['history'])
        for name, mask in self.masks.items():
            mask.copy_(restored[name])
        self.steps = state['steps']
        self.seed = state['seed']
        if self._young is not None:
            self._young.load_state_dict(state.get('young', {}))
        if self.execution is not None:
            self.execution.restore(state.get('choices', {}))
        self._tell_execution()


def _why_to_skip(optimizer: Optimizer) -> str:
    """Why no mask can be updated from these gradients, or ''."""
    gradients = [
        p.grad
        for group in optimizer.param_groups
        for p in group['params']
        if p.grad is not None and p.grad.numel()
    ]
    if not gradients:
        return 'no parameter had a gradient'
    # Several times faster on the CPU than norms, which it can not vectorise.
    extremes = [e for gradient in gradients for e in gradient.aminmax()]
    device = extremes[0].device
    finite = torch.stack([e.float().to(device) for e in extremes]).isfinite()
    return '' if bool(finite.all()) else 'a gradient was not finite'
