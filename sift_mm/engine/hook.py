"""Hook that trains masks in an MMEngine run."""

import math
from functools import partial
from typing import Any

from mmengine.config import Config
from mmengine.dist import broadcast_object_list
from mmengine.hooks import EMAHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from sift_mm.checkpoint.state import (
    CHECKPOINT_KEY,
    check_finite,
    check_keys,
    check_resumable,
    mask_training,
    with_context,
    with_digest,
)
from sift_mm.config.channels import check_channels
from sift_mm.engine.accumulation import (
    Gradients,
    partial_gradients,
    restore_gradients,
)
from sift_mm.engine.budget import whole_model_budget
from sift_mm.engine.first_batches import first_passes
from sift_mm.engine.mask_description import with_masks, without_masks
from sift_mm.engine.mask_log import MaskLog
from sift_mm.engine.optim_wrapper import SparseOptimWrapper, make_maskable
from sift_mm.engine.plan import MaskPlan, sparse_backbone
from sift_mm.engine.randomness import SeededIterations
from sift_mm.engine.saving import save_whole, use_safe_files
from sift_mm.engine.transfer import (
    Origin,
    Start,
    check_member,
    check_optimizer,
    choose_options,
    fit_masks,
    read_start,
)
from sift_mm.engine.wrappers import unwrap
from sift_mm.errors import UserError
from sift_mm.sparsity import (
    MaskSet,
    MaskTrainer,
    NetworkInitializer,
    RunOptions,
    SparseExecution,
)
from sift_mm.sparsity.saved_state import check_counts, find_changes
from sift_mm.sparsity.structures import check_structures


@HOOKS.register_module()
class SparseTrainingHook(Hook):
    """Hook that draws, trains, saves, restores and logs the masks of a run.

    It gives a plain ``OptimWrapper`` or ``AmpOptimWrapper`` a masked step, and
    writes the scalars of :class:`MaskLog` to the run's visualizer. Checkpoints
    hold the masks under the key ``sparse_training``.

    Args:
        **options: Options of :class:`sift_mm.sparsity.RunOptions`.

    Raises:
        ValueError: If an option is unknown or its value is wrong.
    """

    # Before LoggerHook and CheckpointHook.
    priority = 'NORMAL'

    def __init__(self, **options: Any) -> None:
        self.options = RunOptions.of(type(self).__name__, options)
        # Options in use: transferred masks may be fixed.
        self.used = self.options
        self.trainer: MaskTrainer | None = None
        self.steps = 0  # Optimizer steps of the run.
        self.planned: MaskPlan | None = None
        self.log: MaskLog | None = None
        self.iterations: SeededIterations | None = None
        self._start = Start()
        self._gradients: list[Gradients] | None = None
        self._execution_is_logged = False
        # FLOPs and origin of the masks, for the checkpoint.
        self._record: dict[str, Any] = {}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check a checkpoint, and keep its masks until weights are loaded.

        Raises:
            ValueError: If the checkpoint is damaged, cannot resume the run, or
                belongs to another backbone.
        """
        resumed = runner._resume
        weights = checkpoint.get('state_dict', checkpoint)
        optimizer = getattr(runner.optim_wrapper, 'optimizer', None)
        with with_context(runner._load_from):
            if resumed:
                state = check_resumable(checkpoint)
                if optimizer is not None:
                    check_optimizer(checkpoint['optimizer'], optimizer)
            else:
                check_finite(weights)
                state = mask_training(checkpoint)
        self._start = Start(state, True, resumed)
        found = sparse_backbone(unwrap(runner.model))
        if found is not None:
            prefix, backbone = found
            check_keys(
                backbone,
                weights,
                runner._load_from or 'that is loaded',
                prefix.removeprefix('module.'),  # Prefix of a TTA model.
            )
            with with_context(runner._load_from):
                check_member(state or {}, backbone.describe_member())

    def before_run(self, runner: Runner) -> None:
        """Use safe files, and tell the optim wrapper about this hook."""
        use_safe_files()
        if isinstance(runner.optim_wrapper, SparseOptimWrapper):
            runner.optim_wrapper.has_hook = True

    def before_train(self, runner: Runner) -> None:
        """Check the config, draw or restore masks, attach the trainer.

        This is the first moment at which all weights are loaded.

        Raises:
            TypeError: If the run's optim wrapper or model wrapper does not
                support masks.
            ValueError: If the config contradicts itself, or the checkpoint
                lacks the masks of the config.
        """
        model = unwrap(runner.model)  # Refuses sharding before the optimizer.
        wrapper = self._take_wrapper(runner)
        if self.trainer is not None and self._start.state is None:
            return  # A second call of train() goes on.
        plan = self.planned = self.plan(model, runner.cfg)
        check_channels(model, runner.cfg)
        start = read_start(self._start, plan)
        self._start = Start()  # Frees the masks, which are read once.
        seed = self._shared_seed(runner)
        accumulated = runner.optim_wrapper._accumulative_counts
        steps = self.steps = math.ceil(runner.max_iters / accumulated)
        origin = (
            start.find_origin(self.options)
            if plan.parameters
            else Origin.NEEDLESS
        )
        transfer = ''
        self.used = self.options
        if origin is Origin.TRANSFERRED:
            transfer = self.options.transfer
            self.used = choose_options(self.options, start, plan.parameters)
        masks = self._first_masks(runner, seed, plan, start, origin, steps)
        if masks is None:
            runner.logger.info(without_masks(plan, origin))
            return
        changes = any(a.changes_density for a in self.used.algorithms)
        final = plan.counts if changes else None
        self.trainer = self.used.trainer(masks, steps, seed, final)
        self._prepare_trainer(runner, self.trainer, start)
        self._attach(runner, wrapper, start)
        algorithms = self.used.name_algorithms(masks)
        text, self._record = with_masks(
            plan, self.trainer, algorithms, transfer, steps
        )
        runner.logger.info(text)

    def _take_wrapper(self, runner: Runner) -> SparseOptimWrapper:
        """Return the run's optim wrapper with a masked step."""
        wrapper = make_maskable(runner.optim_wrapper)
        if wrapper.mask_trainer is not self.trainer:
            raise UserError(
                'A run has one SparseTrainingHook; custom_hooks names several.'
            )
        return wrapper

    def plan(self, model: nn.Module, cfg: Config) -> MaskPlan:
        """Return the mask plan of a model and its config."""
        count = partial(whole_model_budget, cfg, model)
        return MaskPlan(
            model, self.options, count if cfg.get('model') else None
        )

    def _first_masks(
        self,
        runner: Runner,
        seed: int,
        plan: MaskPlan,
        start: Start,
        origin: Origin,
        steps: int,
    ) -> MaskSet | None:
        """Return the first masks, or None."""
        options, state = self.used, start.state or {}
        if plan.backbone is not None:
            plan.backbone.masks_attached = True  # It may train.
        if origin in (Origin.NEEDLESS, Origin.DROPPED):
            return None
        counts = options.count_schedule(plan.shapes, plan.counts, steps)
        if origin is Origin.DRAWN:
            passes = first_passes(runner, options.initializer)
            return plan.draw(seed, counts.at(0), passes)
        check_member(state, {'sparsity': plan.nominal_sparsity})
        check_structures(
            state, options.structures(plan.parameters), plan.parameters
        )
        if origin is Origin.RESTORED:
            expected = counts.saved(state)
            masks = fit_masks(state, plan.parameters, expected)
            spread = isinstance(options.initializer, NetworkInitializer)
            check_counts(masks, expected, plan.costs if spread else None)
            return masks
        masks = fit_masks(state, plan.parameters, plan.counts)
        if not start.resumed:
            own = plan.distribution.fixed(masks)
            check_counts({name: masks[name] for name in own}, plan.counts)
        return masks

    def _shared_seed(self, runner: Runner) -> int:
        """Return the seed of the masks, the same on every rank."""
        # runner.seed differs between ranks under diff_rank_seed.
        given = self.options.seed
        seed = [runner.seed if given is None else given]
        broadcast_object_list(seed)
        return seed[0]

    def _prepare_trainer(
        self, runner: Runner, trainer: MaskTrainer, start: Start
    ) -> None:
        """Set the execution, and restore the state of a resumed run."""
        model = unwrap(runner.model)
        trainer.set_execution(
            SparseExecution(model, trainer.masks, self.options.execution)
        )
        if still := trainer.counts.why_still():
            runner.logger.warning(still)
        if not start.resumed:
            return
        for key, then, now in find_changes(trainer.state_dict(), start.saved):
            runner.logger.warning(
                f'The resumed run had {key}={then!r}; it goes on with {now!r}.'
            )
        trainer.load_state_dict(start.saved)

    def _attach(
        self, runner: Runner, wrapper: SparseOptimWrapper, start: Start
    ) -> None:
        """Mask weights and steps, and prepare the run for interruption."""
        assert self.trainer is not None
        model = unwrap(runner.model)
        save_whole(runner)
        seed = start.saved.get('sampler_seed')
        self.iterations = SeededIterations(runner, seed)
        if 'gradients' in start.saved:
            lost = restore_gradients(start.saved['gradients'], model)
            if lost:
                runner.logger.warning(lost)
        wrapper.mask_trainer = self.trainer
        self.log = MaskLog(self.trainer, self.options.log_layers)
        wrapper.before_step = (
            self.log.before_step if self.options.log_layers else None
        )
        # A user's train_step may step without the wrapper.
        self.trainer.attach(model, wrapper.optimizer)
        self._mask_averages(runner)

    def _mask_averages(self, runner: Runner) -> None:
        """Apply the masks to averaged networks.

        An average keeps values of dropped weights.
        """
        assert self.trainer is not None
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):
                self.trainer.masks.apply_(
                    dict(hook.ema_model.module.named_parameters())
                )

    def before_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        """Seed the model's random numbers."""
        if self.iterations is not None:
            self.iterations.begin(runner.iter)

    def after_train_epoch(self, runner: Runner) -> None:
        """Keep accumulated gradients, if a checkpoint is saved now."""
        if self.trainer is not None:
            self._gradients = (
                partial_gradients(runner, True) or self._gradients
            )

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        """Log masks, and once the execution."""
        trainer = self.trainer
        if trainer is None:
            return
        self._gradients = partial_gradients(runner, False)
        if trainer.steps and not self._execution_is_logged:
            self._execution_is_logged = True
            assert trainer.execution is not None
            runner.logger.info(trainer.execution.describe())
        report, trainer.report = trainer.report, None
        if report is not None and report.skipped:
            runner.logger.warning(
                f'Mask update at step {report.step} skipped: {report.skipped}.'
            )
        elif report is not None:
            self._mask_averages(runner)
        assert self.log is not None
        if scalars := self.log.after_step(report):
            runner.visualizer.add_scalars(scalars, step=runner.iter + 1)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the trainer's state to the checkpoint."""
        if self.trainer is not None:
            state = self.trainer.state_dict() | self._record
            state['iter'] = checkpoint['meta']['iter']
            if self.iterations is not None:
                state['sampler_seed'] = self.iterations.sampler_seed
            if self._gradients is not None:
                state['gradients'] = self._gradients
            checkpoint[CHECKPOINT_KEY] = with_digest(state)
        elif self._start.state is not None:
            # Loaded and saved again without training.
            checkpoint[CHECKPOINT_KEY] = self._start.state
