"""The hook that trains masks in an MMEngine run."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from mmengine.config import Config
from mmengine.dist import broadcast_object_list
from mmengine.hooks import EMAHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from sift_mm.arguments import (
    AnyGlobs,
    Count,
    End,
    Globs,
    Seed,
    Sparsity,
    checked,
)
from sift_mm.checkpoint.state import (
    CHECKPOINT_KEY,
    check_finite,
    check_keys,
    check_resumable,
    mask_training,
    named,
    sealed,
)
from sift_mm.config.channels import check_channels
from sift_mm.engine.accumulation import (
    Gradients,
    partial_gradients,
    restore_gradients,
)
from sift_mm.engine.checks import unwrap
from sift_mm.engine.optim_wrapper import SparseOptimWrapper, make_maskable
from sift_mm.engine.plan import MaskPlan, sparse_backbone, whole_model_budget
from sift_mm.engine.randomness import SeededIterations
from sift_mm.engine.saving import save_whole, use_safe_files
from sift_mm.engine.transfer import (
    Transfer,
    check_counts,
    check_member,
    check_optimizer,
    mask_origin,
    masks_of,
    pretrained_state,
)
from sift_mm.errors import Mistake
from sift_mm.sparsity import (
    ALGORITHMS,
    DISTRIBUTIONS,
    INITIALIZERS,
    Algorithm,
    AlgorithmLike,
    DistributionLike,
    DropFractionLike,
    ExecutionMode,
    InitializerLike,
    MaskTrainer,
    SparseExecution,
    Static,
    Unstructured,
    UpdateSchedule,
    density,
    make_drop_fraction,
)
from sift_mm.sparsity.structures import check_structure
from sift_mm.sparsity.trainer import Placement

# What a resumed run may change, but not without a word.
SCHEDULE = (
    'algorithm',
    'placement',
    'interval',
    'end',
    'drop_fraction',
    'execution',
)


@HOOKS.register_module()
class SparseTrainingHook(Hook):
    """Draws, trains, saves, restores and logs the masks of a run.

    Works with a plain ``OptimWrapper`` or ``AmpOptimWrapper``, which it gives
    a masked step. At each update ``sparse/density``,
    ``sparse/drop_fraction``, ``sparse/moved`` (share of the active weights
    that moved) and ``sparse/itop_rate`` go to the run's visualizer. Masks are
    in the checkpoint under the key ``sparse_training``.

    Args:
        algorithm (str | dict): 'Static', 'SET' or 'RigL'.
        sparsity (float, optional): Share of zero weights. None follows the
            Sparse-IFT backbone; to be given only for models without one.
        distribution (str | dict): 'Uniform', 'UniformPlus', 'ER', 'ERK' or
            ``dict(type='Explicit', sparsities={pattern: sparsity})``.
        init (str | dict, optional): First masks: 'Random', 'TopK' or
            'FromWeights'. None is 'Random' for a run from scratch; where
            weights are loaded (an ``init_cfg`` of type Pretrained, or
            ``load_from``), None takes the masks of that checkpoint, and it
            is an error if there are none.
        transfer (str): What becomes of masks taken so: 'fixed', they stay
            as they are; 'train', the algorithm goes on from them; 'dense',
            they are dropped, and the network is trained dense, at more
            FLOPs.
        drop_fraction (float | str | dict): Share of the active weights
            dropped at an update. A number is the start of a cosine; else
            'Constant', 'Linear', 'Cosine' or ``dict(type='Linear',
            initial=0.3)``.
        interval (int): Optimizer steps between two updates.
        end (float): Share of all optimizer steps after which masks stay, in
            (0, 1].
        placement (str): 'after_step', the update follows the optimizer
            step; 'replace_step', it takes its place.
        include (Sequence[str], optional): Glob patterns of parameter names
            to be sparse, in place of what the backbone says.
        exclude (Sequence[str]): Glob patterns of parameter names to leave
            dense.
        seed (int, optional): Seed of the masks; None takes the run's.
        log_layers (bool): Whether to log the density of each layer too.
        execution (str): How masked layers run on a CPU: 'auto', each product
            sparse where a timing in the first step says that it is faster;
            'sparse'; 'dense'. See docs/mask_training.md.

    Raises:
        ValueError: If an argument is not among the above.
    """

    # Before LoggerHook and CheckpointHook.
    priority = 'NORMAL'

    @checked
    def __init__(
        self,
        algorithm: AlgorithmLike = 'RigL',
        sparsity: Sparsity | None = None,
        distribution: DistributionLike = 'Uniform',
        init: InitializerLike | None = None,
        transfer: Transfer = 'fixed',
        drop_fraction: DropFractionLike = 0.3,
        interval: Count = 100,
        end: End = 0.75,
        placement: Placement = 'after_step',
        include: Globs | None = None,
        exclude: AnyGlobs = (),
        seed: Seed | None = None,
        log_layers: bool = False,
        execution: ExecutionMode = 'auto',
    ) -> None:
        if init is not None and transfer != 'fixed':
            raise Mistake(
                f'init={type(init).__name__!r} draws new masks, and '
                f'transfer={transfer!r} is about those that come with loaded '
                'weights; leave one out.'
            )
        self.algorithm = ALGORITHMS.build(algorithm)
        self.distribution = DISTRIBUTIONS.build(distribution)
        self.initializer = INITIALIZERS.build(init or 'Random')
        self.drop_fraction = make_drop_fraction(drop_fraction)
        self.init_is_given = init is not None
        self.transfer = transfer
        self.sparsity = sparsity
        self.interval = interval
        self.end = end
        self.placement = placement
        self.include = include
        self.exclude = exclude
        self.seed = seed
        self.log_layers = log_layers
        self.execution = execution
        self.trainer: MaskTrainer | None = None
        self.iterations: SeededIterations | None = None
        self._gradients: list[Gradients] | None = None
        self._checkpoint: Mapping[str, Any] | None = None
        self._loaded = self._resumed = False
        self._execution_is_said = False
        self._transferred = ''
        self._budget: dict[str, float] = {}
        self._member: dict[str, Any] = {}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep the masks of a checkpoint until weights are loaded too.

        Raises:
            ValueError: If it is damaged, if a run that is to be resumed
                would not go on as it was, or if it is not of the Sparse-IFT
                backbone.
        """
        self._loaded, self._resumed = True, runner._resume
        state = checkpoint.get('state_dict', checkpoint)
        optimizer = getattr(runner.optim_wrapper, 'optimizer', None)
        with named(runner._load_from):
            if runner._resume:
                self._checkpoint = check_resumable(checkpoint)
                if optimizer is not None:
                    check_optimizer(checkpoint['optimizer'], optimizer)
            else:
                check_finite(state)
                self._checkpoint = mask_training(checkpoint)
        found = sparse_backbone(unwrap(runner.model))
        if found is not None:
            prefix, backbone = found
            check_keys(
                backbone,
                state,
                runner._load_from or 'that is loaded',
                prefix.removeprefix('module.'),  # Of a TTA model.
            )
            with named(runner._load_from):
                member = backbone.describe_member()
                check_member(self._checkpoint or {}, member)

    def before_run(self, runner: Runner) -> None:
        """Make file access safe, and tell the wrapper that masks will come."""
        use_safe_files()
        if isinstance(runner.optim_wrapper, SparseOptimWrapper):
            runner.optim_wrapper.has_hook = True

    def before_train(self, runner: Runner) -> None:
        """Check the config, draw or restore masks, attach the trainer.

        Weights are initialised and loaded only now.

        Raises:
            TypeError: If the run's optim wrapper or model wrapper cannot
                work under masks.
            ValueError: If the config contradicts itself, or the checkpoint
                does not have the masks that it asks for.
        """
        model = unwrap(runner.model)  # Before the optimizer it came with.
        wrapper = make_maskable(runner.optim_wrapper)
        if wrapper.mask_trainer is not self.trainer:
            raise Mistake(
                'A run has one SparseTrainingHook; custom_hooks names several.'
            )
        if self.trainer is not None and self._checkpoint is None:
            return  # Training goes on after an earlier call of train().
        plan = self.plan(model, runner.cfg)
        check_channels(model, runner.cfg)
        if plan.backbone is not None:
            plan.backbone.masks_attached = True  # It may train.
        origin = self._origin(plan)
        if origin in ('needless', 'dropped'):
            self._checkpoint = None
            runner.logger.info(self._describe_dense(plan, origin))
            return
        self.trainer = self._make_trainer(runner, plan, origin)
        self._go_on(runner)
        self._checkpoint = None
        wrapper.mask_trainer = self.trainer
        self.trainer.watch(model)
        self.trainer.enforce(wrapper.optimizer)
        # A train_step of one's own may step past the wrapper.
        self.trainer.guard(wrapper.optimizer)
        self._mask_averages(runner)
        runner.logger.info(self._describe(plan))

    def plan(self, model: nn.Module, cfg: Config) -> MaskPlan:
        """The masks that this hook gives the model of a run's config."""
        return MaskPlan(
            model,
            self.distribution,
            self.sparsity,
            self.include,
            self.exclude,
            partial(whole_model_budget, cfg, model)
            if cfg.get('model')
            else None,
            self.algorithm.structure,
        )

    def _origin(self, plan: MaskPlan) -> str:
        """See :func:`mask_origin`; 'needless' without any to be masked."""
        loaded = self._loaded
        if not loaded:
            loaded, self._checkpoint = pretrained_state(
                plan.model, plan.parameters
            )
        if not plan.parameters:
            return 'needless'
        return mask_origin(
            self._checkpoint,
            loaded,
            self._resumed,
            self.transfer,
            self.init_is_given,
        )

    def _make_trainer(
        self, runner: Runner, plan: MaskPlan, origin: str
    ) -> MaskTrainer:
        """The trainer, with its masks and, of a resumed run, its state."""
        # runner.seed differs between ranks under diff_rank_seed.
        seed = [runner.seed if self.seed is None else self.seed]
        broadcast_object_list(seed)
        state = self._checkpoint or {}
        self._transferred = self.transfer if origin == 'transferred' else ''
        algorithm = self.algorithm
        if origin == 'drawn':
            masks = plan.draw(self.initializer, seed[0])
        else:
            algorithm = self._algorithm(state)
            check_member(state, {'sparsity': plan.nominal})
            check_structure(state, algorithm.structure)
            masks = masks_of(state, plan.parameters, plan.counts)
            if origin == 'restored':
                check_counts(masks, plan.counts)
        trainer = MaskTrainer(
            masks,
            algorithm,
            self._schedule(runner, algorithm),
            self.drop_fraction,
            seed[0],
            self.placement,
        )
        if still := trainer.why_still():
            runner.logger.warning(still)
        trainer.execute(
            SparseExecution(unwrap(runner.model), masks, self.execution)
        )
        if self._resumed:
            self._warn_of_changes(runner, trainer.state_dict(), state)
            trainer.load_state_dict(state)
        return trainer

    def _algorithm(self, state: Mapping[str, Any]) -> Algorithm:
        """Return the algorithm that goes on from a checkpoint's masks."""
        algorithm = self.algorithm
        if self._transferred == 'fixed':
            # Masks that stay keep their structure; one that is given holds.
            structure: Any = algorithm.structure
            if isinstance(structure, Unstructured):
                structure = state.get('structure', structure)
            algorithm = Static(structure)
        return algorithm

    def _go_on(self, runner: Runner) -> None:
        """Make the run one that can be broken anywhere, and resumed."""
        save_whole(runner)
        state = self._checkpoint if self._resumed and self._checkpoint else {}
        self.iterations = SeededIterations(runner, state.get('sampler_seed'))
        if 'gradients' in state:
            lost = restore_gradients(state['gradients'], unwrap(runner.model))
            if lost:
                runner.logger.warning(lost)

    def _describe_dense(self, plan: MaskPlan, origin: str) -> str:
        """What the log says of a run without masks."""
        if origin == 'needless':
            return (
                'The backbone needs no masks: its FLOPs (with a classifier, '
                f'if it has one) are {plan.ratio:.6f} of the dense one '
                f'without them{self._whole_ratio(plan, {})}.'
            )
        text = "transfer='dense': masks are dropped, and all weights train"
        if plan.budget is not None:
            text += (
                f', at {plan.budget.ratio({}):.4f} times the FLOPs of the '
                f"dense twin's backbone{self._whole_ratio(plan, {})}"
            )
        return f'{text}.'

    def _describe(self, plan: MaskPlan) -> str:
        """What the log says of the masks; kept for the checkpoint too."""
        assert self.trainer is not None
        masks = self.trainer.masks
        densities = {
            name: count / masks[name].numel()
            for name, count in masks.counts().items()
        }
        self._budget = {
            'nominal': plan.nominal,
            'sparsity': 1 - density(masks),
        }
        text = (
            f'{type(self.trainer.algorithm).__name__} on {len(masks)} '
            f'parameters: sparsity {plan.nominal} as written, masks at '
            f'density {density(masks):.6f}'
        )
        if plan.rounds and not self._transferred:
            text += f' ({plan.rounds})'
        if self._transferred:
            text += (
                ', taken from the loaded checkpoint (transfer='
                f'{self._transferred!r})'
            )
        if plan.budget is not None and plan.backbone is not None:
            self._budget['flops_ratio'] = plan.budget.ratio(densities)
            self._member = plan.backbone.describe_member()
            text += (
                ', FLOPs of the backbone (with a classifier, if it '
                f'has one) {self._budget["flops_ratio"]:.6f} of the '
                f'dense one{self._whole_ratio(plan, densities)}'
            )
        return text

    def _whole_ratio(
        self, plan: MaskPlan, densities: Mapping[str, float]
    ) -> str:
        """Words on the FLOPs of the whole model, with neck and heads."""
        try:
            ratio = plan.whole.ratio(densities)
        except ValueError as error:
            return f' (the whole model was not counted: {error})'
        self._budget['model_flops_ratio'] = ratio
        return f', of the whole model {ratio:.4f}'

    def _warn_of_changes(
        self, runner: Runner, now: Mapping[str, Any], then: Mapping[str, Any]
    ) -> None:
        """Say what a resumed run does in another way than before."""
        for key in SCHEDULE:
            if key in then and then[key] != now[key]:
                runner.logger.warning(
                    f'The resumed run had {key}={then[key]!r}; '
                    f'it goes on with {now[key]!r}.'
                )

    def _mask_averages(self, runner: Runner) -> None:
        """Make averaged networks as sparse as the one that is trained.

        An average remembers weights that were dropped.
        """
        assert self.trainer is not None
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):
                self.trainer.masks.apply_(
                    dict(hook.ema_model.module.named_parameters())
                )

    def before_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        """Seed what the model draws."""
        if self.iterations is not None:
            self.iterations.begin(runner.iter)

    def after_train_epoch(self, runner: Runner) -> None:
        """Keep the gradients that wait, if a checkpoint is saved now."""
        if self.trainer is not None:
            self._gradients = (
                partial_gradients(runner, unwrap(runner.model), True)
                or self._gradients
            )

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        """Log a mask update, if there was one, and once the execution."""
        trainer = self.trainer
        if trainer is None:
            return
        self._gradients = partial_gradients(
            runner, unwrap(runner.model), False
        )
        if trainer.steps and not self._execution_is_said:
            self._execution_is_said = True
            assert trainer.execution is not None
            runner.logger.info(trainer.execution.describe())
        if trainer.report is None:
            return
        report, trainer.report = trainer.report, None
        if report.skipped:
            runner.logger.warning(
                f'Mask update at step {report.step} left out: '
                f'{report.skipped}.'
            )
            return
        self._mask_averages(runner)
        scalars = {
            'sparse/density': density(trainer.masks),
            'sparse/drop_fraction': report.drop_fraction,
            'sparse/moved': report.moved,
            'sparse/itop_rate': trainer.history.itop_rate(),
        }
        if self.log_layers:
            scalars |= {
                f'sparse/density/{name}': count / trainer.masks[name].numel()
                for name, count in trainer.masks.counts().items()
            }
        runner.visualizer.add_scalars(scalars, step=runner.iter + 1)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add masks and the rest of the trainer's state."""
        if self.trainer is not None:
            state = self.trainer.state_dict() | {
                'iter': checkpoint['meta']['iter'],
                'budget': self._budget,
                'member': self._member,
                'transfer': self._transferred,
            }
            if self.iterations is not None:
                state['sampler_seed'] = self.iterations.sampler_seed
            if self._gradients is not None:
                state['gradients'] = self._gradients
            checkpoint[CHECKPOINT_KEY] = sealed(state)
        elif self._checkpoint is not None:
            # Loaded and saved without training in between.
            checkpoint[CHECKPOINT_KEY] = self._checkpoint

    def _schedule(
        self, runner: Runner, algorithm: Algorithm
    ) -> UpdateSchedule | None:
        if not algorithm.dynamic:
            return None
        accumulated = runner.optim_wrapper._accumulative_counts
        steps = math.ceil(runner.max_iters / accumulated)
        return UpdateSchedule(self.interval, int(self.end * steps + 1e-9))
