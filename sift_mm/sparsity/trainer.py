"""Mask training at optimizer steps."""

import warnings
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sift_mm import validation
from sift_mm.checkpoint.state import VERSION
from sift_mm.errors import UserCallError, UserError
from sift_mm.orientation import filter_shape, inputs_first_names
from sift_mm.sparsity import momentum, updates
from sift_mm.sparsity.agreement import check_agreement
from sift_mm.sparsity.algorithms import Algorithm
from sift_mm.sparsity.counts import Assignment, CountSchedule
from sift_mm.sparsity.execution import SparseExecution
from sift_mm.sparsity.masks import MaskSet
from sift_mm.sparsity.metrics import MaskHistory
from sift_mm.sparsity.optimizers import (
    apply_mask_with_slots_,
    check_optimizer,
    with_wrapped,
)
from sift_mm.sparsity.saved_state import check_state
from sift_mm.sparsity.schedules import DropFraction, UpdateSchedule
from sift_mm.sparsity.updates import MaskUpdate, UpdateReport
from sift_mm.sparsity.watch import WeightWatch

Placement = Literal['after_step', 'replace_step']


class MaskTrainer:
    """Trainer of a model's masks along with its weights.

    Call :meth:`enforce` once, then :meth:`step` in place of
    ``optimizer.step()``, when the gradients are complete: after backward,
    accumulation, averaging over ranks and unscaling, before clipping.

    Args:
        masks (MaskSet): Masks, which the trainer changes in place.
        algorithm (Algorithm): Algorithm of mask updates.
        schedule (UpdateSchedule, optional): Schedule of mask updates; None for
            no updates.
        drop_fraction (DropFraction): Schedule of the drop fraction.
        seed (int): Seed of the run.
        placement (str): 'after_step' updates masks from the new weights and
            the step's gradient (the Sparse-IFT code). 'replace_step' updates
            them in place of the optimizer's step (RigL, algorithm 1).
        final (Mapping, optional): Active weights after the last update, by
            name; None for those of ``masks``. The first masks have
            ``counts.at(0)`` active weights.
        groups (Mapping): Algorithm and schedules of layers that have others,
            by name.

    The optimizer must keep a weight at zero if its gradient and slots are
    zero, like all element-wise optimizers; :meth:`enforce` tests it.

    Raises:
        ValueError: If placement is unknown.
    """

    def __init__(
        self,
        masks: MaskSet,
        algorithm: Algorithm,
        schedule: UpdateSchedule | None,
        drop_fraction: DropFraction,
        seed: int = 0,
        placement: Placement = 'after_step',
        final: Mapping[str, int] | None = None,
        groups: Mapping[str, Assignment] | None = None,
    ) -> None:
        validation.read('placement', placement, Placement)
        self.masks = masks
        self.algorithm = algorithm
        self.seed = seed
        self.placement = placement
        shapes = {n: filter_shape(p) for n, p in masks.parameters.items()}
        updates = schedule if algorithm.dynamic else None
        self.counts = CountSchedule(
            Assignment(algorithm, updates, drop_fraction),
            shapes,
            masks.counts() if final is None else final,
            groups or {},
        )
        for name, shape in shapes.items():
            self.counts.of(name).algorithm.check_layer(name, shape)
        self.history = MaskHistory(masks)
        self.steps = 0
        self.momentum: Mapping[str, Tensor] = {}
        # Step of the update that gave the masks their counts.
        self._counted = 0
        self.report: UpdateReport | None = None
        self.execution: SparseExecution | None = None
        self._watch = WeightWatch(masks, masks.parameters)
        self._ranks_agree = False
        self._in_step = False
        self._optimizer: Optimizer | None = None

    @property
    def needs_dense_gradient(self) -> bool:
        """True if the next step reads gradients outside the masks."""
        step = self.steps + 1
        return bool(self.counts.averaged(step)) or any(
            self.counts.of(name).algorithm.needs_gradient
            for name in self.counts.due(step, self._counted)
        )

    def _is_due(self, step: int) -> bool:
        return bool(self.counts.due(step, self._counted))

    def final_counts(self) -> dict[str, int]:
        """Return the active weights after the last update, by name."""
        final, changes = self.counts.final, self.counts.changes
        return dict(final) if changes else self.masks.counts()

    def attach(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Mask weights and slots, and refuse steps that bypass the masks.

        Raises:
            ValueError: As of :meth:`enforce`.
            TypeError: As of :meth:`enforce`.
        """
        self._watch.model = model
        self.enforce(optimizer)
        self.guard(optimizer)

    def set_execution(self, execution: SparseExecution) -> None:
        """Set the execution of the network, and keep it up to date."""
        self.execution = execution
        self._update_execution()

    def _update_execution(self, masks_changed: bool = True) -> None:
        if self.execution is not None:
            if masks_changed:
                self.execution.refresh_patterns()
            self.execution.expect_dense_gradient(self.needs_dense_gradient)

    def guard(self, optimizer: Optimizer) -> None:
        """Refuse plain steps of an optimizer, which would ignore the masks."""
        reference = weakref.ref(self)  # An optimizer may outlive its trainer.

        def refuse(*_: Any) -> None:
            trainer = reference()
            if trainer is not None and not trainer._in_step:
                raise UserCallError(
                    'optimizer.step() would move weights outside the masks; '
                    'call the step() of SparseTraining (or of MaskTrainer) '
                    'in its place, one for each optimizer.'
                )

        for each in with_wrapped(optimizer):
            # A wrapper may lack the attributes for hooks.
            if hasattr(each, '_optimizer_step_pre_hooks'):
                each.register_step_pre_hook(refuse)

    def enforce(self, optimizer: Optimizer) -> None:
        """Set weights and optimizer slots outside the masks to zero.

        Raises:
            ValueError: If the optimizer lacks a masked parameter. No weight
                has changed then.
            TypeError: If the optimizer moves weights outside masks, see
                :func:`check_optimizer`. No weight has changed then.
        """
        self._watch.check_objects(optimizer)
        check_optimizer(optimizer, self.masks.parameters)
        self._check_algorithm(optimizer)
        self._optimizer = optimizer
        self._apply_masks(optimizer)

    def _check_algorithm(self, optimizer: Optimizer) -> None:
        """Refuse parameters that the algorithm could not train."""
        for name, parameter in self.masks.parameters.items():
            own = self.counts.of(name)
            if own.algorithm.needs_momentum:
                momentum.momentum_of(optimizer, parameter)
            if own.changes and not parameter.requires_grad:
                raise UserError(
                    f'{type(own.algorithm).__name__} changes the density of '
                    f'{name!r}, which is frozen: let it train, or leave it '
                    'out by exclude.'
                )

    def _apply_masks(self, optimizer: Optimizer) -> None:
        for name, parameter in self.masks.parameters.items():
            apply_mask_with_slots_(parameter, optimizer, self.masks[name])
        self._watch.remember(optimizer)

    # A compiled train_step, from MMEngine's `compile`, would retrace at each
    # update.
    @torch.compiler.disable
    def step(self, optimizer: Optimizer, run: Callable[[], Any]) -> None:
        """Take one optimizer step under the masks.

        Gradients are masked before ``run``, so that the clipping norm counts
        active weights only. Weights and slots outside the masks are zero, and
        stay zero with zero gradients.

        An update of masks, weights, slots, history and step count is complete
        or has no effect, also after an exception or Ctrl-C.

        Args:
            optimizer (Optimizer): Optimizer of the parameters.
            run (Callable): Function that clips and steps. It is not called
                if an update replaces the step.

        Raises:
            ValueError: If a masked parameter was replaced since the last
                step, or the structure changes the number of active weights.
            RuntimeError: If the first step or an update is due and the masks
                of the ranks differ.
        """
        step = self.steps + 1
        due = self._is_due(step)
        self._check_ranks(step, due)
        self._check_weights(optimizer)
        update = MaskUpdate(
            step,
            self.masks,
            self.counts,
            optimizer,
            self.seed,
            self.history,
            self.momentum,
        )
        self._begin(update, due)
        if update.live is None or self.placement == 'after_step':
            update.shortlist()
            self.masks.mask_gradients_()
            try:
                self._in_step = True
                run()
            finally:
                self._in_step = False
        if update.live is not None:
            update.plan()
        updates.finish(lambda: self._write(update))
        self._watch.remember(optimizer)
        if self.execution is not None:
            # All ranks update masks at the same steps, and rarely.
            self.execution.update_choices(may_wait=due)

    def _check_ranks(self, step: int, due: bool) -> None:
        if due or not self._ranks_agree:
            plan = (self.seed, *self.counts.plan(step))
            plan = plan if self.counts.updates else ()
            check_agreement(self.masks, step, plan)
            self._ranks_agree = True

    def _check_weights(self, optimizer: Optimizer) -> None:
        """Mask weights and slots again if they were written since a step."""
        self._watch.check_objects(optimizer)
        if self._optimizer not in (optimizer, None):
            self.enforce(optimizer)  # Another one, which may not be fit.
            self.guard(optimizer)
        strays = self._watch.find_strays()
        if strays:
            warnings.warn(
                f'Weights outside the masks of {", ".join(strays)} were '
                'written since the last step (load_state_dict, an '
                'initialiser, an assignment); they are set to zero again.',
                stacklevel=4,
            )
        if strays or self._watch.slots_replaced(optimizer):
            self._apply_masks(optimizer)

    def _begin(self, update: MaskUpdate, due: bool) -> None:
        """Set means, layers and counts of an update, or why it is skipped.

        A parameter that is frozen or unused in the step keeps its mask.
        """
        averaged = self.counts.averaged(update.step)
        if not averaged:
            update.momentum = {}
        if not (due or averaged):
            return
        optimizer, parameters = update.optimizer, self.masks.parameters
        reason = updates.why_to_skip(optimizer)
        if averaged and not reason:
            update.momentum = momentum.mean_gradients(
                optimizer, {n: parameters[n] for n in averaged}, self.momentum
            )
        if not due:
            return
        wanted = self.counts.due(update.step, self._counted)
        live = [
            name
            for name, p in parameters.items()
            if name in wanted and p.grad is not None and p.requires_grad
        ]
        still = wanted.difference(live)
        stuck = [n for n in still if self.counts.of(n).changes]
        if stuck and not reason:
            reason = (
                f'{min(stuck)!r}, whose density is to change, had no gradient'
            )
        if reason:
            # Scores with inf or NaN would move masks at random; a loss scaler
            # skips such a step too.
            update.report = UpdateReport(update.step, 0.0, 0.0, reason)
            return
        update.live, update.final = live, self.final_counts()
        changes = self.counts.changes
        update.targets = (
            self.counts.at(update.step) if changes else update.final
        )

    @torch.no_grad()
    def _write(self, update: MaskUpdate) -> None:
        """Write an update; it may run again from the start.

        Grown weights start at zero, dropped weights and their slots become
        zero, and weights that are dropped and grown at once keep both.
        """
        for name, new in update.new.items():
            mask = self.masks[name]
            parameter = self.masks.parameters[name]
            apply_mask_with_slots_(parameter, update.optimizer, mask & new)
            mask.copy_(new)
        self.history = update.history
        self.steps = update.step
        self.report = update.report
        self.momentum = update.momentum
        if update.new:
            self._counted = self.counts.last_due(update.step)
        self._update_execution(masks_changed=bool(update.new))

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs.

        Interval, end and drop fraction are compared with the options of the
        resumed run; without updates interval and end are 0.
        """
        more: dict[str, Any] = self.counts.describe()
        if self.counts.changes:
            more['counted'] = self._counted
        if self.momentum:
            more['momentum'] = {
                n: m.cpu().clone() for n, m in self.momentum.items()
            }
        turned = inputs_first_names(self.masks.parameters)
        if turned:
            more['inputs_first'] = turned
        return more | {
            'version': VERSION,
            'placement': self.placement,
            'execution': self.execution.mode if self.execution else 'dense',
            'choices': self.execution.choices() if self.execution else {},
            'seed': self.seed,
            'steps': self.steps,
            'masks': {n: m.cpu().clone() for n, m in self.masks.items()},
            'history': self.history.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore masks, history, step count and seed, or change nothing.

        Raises:
            ValueError: If the state has a newer version, is incomplete or has
                another network.
        """
        check_state(state)
        restored = MaskSet(self.masks.parameters, state['masks'])
        history = MaskHistory(restored)
        history.load_state_dict(state['history'])
        saved = state.get('momentum', {})
        means = momentum.restore_means(saved, self.masks.parameters)

        def write() -> None:
            for name, mask in self.masks.items():
                mask.copy_(restored[name])
            self.history = history
            self.steps = state['steps']
            self.seed = state['seed']
            self._counted = state.get(
                'counted', self.counts.last_due(self.steps)
            )
            self.momentum = means
            if self.execution is not None:
                self.execution.restore(state.get('choices', {}))
            self._update_execution()

        updates.finish(write)
        self._ranks_agree = False
