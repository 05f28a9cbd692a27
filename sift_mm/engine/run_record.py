"""Record of a training: run.json, first and last lines of its log."""

import json
import math
import platform
import sys
import time
from contextlib import suppress
from datetime import datetime
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner
from torch import nn

from sift_mm.backbones.base import sparse_backbone
from sift_mm.checkpoint.writing import written_whole
from sift_mm.config.images import find_sizes
from sift_mm.engine.budget import FlopBudget, whole_model_budget
from sift_mm.engine.hook import SparseTrainingHook
from sift_mm.engine.run_text import first_lines, flops_line, last_lines
from sift_mm.engine.wrappers import unwrap
from sift_mm.flops import describe_shape
from sift_mm.sparsity.metrics import training_flops

#: File of the record, beside the run's log.
FILE = 'run.json'
#: Key of the training's seconds in the ``meta`` of a checkpoint.
SECONDS = 'training_seconds'
PACKAGES = (
    *('torch', 'numpy', 'sift_mm', 'mmengine', 'mmcv'),
    *('mmdet', 'mmseg', 'mmpretrain'),
)


def machine() -> str:
    """Return processor, threads of PyTorch and accelerator in words."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        found = [line for line in lines if line.startswith('model name')]
        name = found[0].partition(':')[2].strip()
    except (OSError, IndexError):
        pass  # Not Linux, or a processor without a name.
    text = f'{name}, threads {torch.get_num_threads()}'
    if torch.cuda.is_available():
        text += f', {torch.cuda.get_device_name()}'
    return text


def versions() -> dict[str, str]:
    """Return the versions of Python and of the imported libraries."""
    loaded = [(name, sys.modules.get(name)) for name in PACKAGES]
    found = {
        name: str(getattr(module, '__version__', 'unknown'))
        for name, module in loaded
        if module is not None
    }
    return {'python': platform.python_version(), **found}


def describe_masks(hook: SparseTrainingHook | None) -> dict[str, Any]:
    """Return algorithm, sparsity and size of the masks of a run, or {}."""
    if hook is None or hook.trainer is None or hook.planned is None:
        return {}
    masks = hook.trainer.masks
    active = sum(masks.counts().values())
    final = sum(hook.trainer.final_counts().values())
    size = sum(mask.numel() for mask in masks.values())
    return dict(
        algorithm=hook.used.name_algorithms(masks),
        nominal=hook.planned.nominal_sparsity,
        solved=1 - final / size,
        active=active,
        size=size,
    )


def describe_flops(
    runner: Runner, model: nn.Module, hook: SparseTrainingHook | None
) -> dict[str, Any]:
    """Return the FLOPs of the model under its masks, and of the dense twin.

    Returns:
        dict[str, Any]: ``inference`` and ``dense``, their ``ratio``, the
        ``training_ratio`` of a training step, and ``of``, the image in words.
        If they cannot be counted, ``of`` alone, with the reason.
    """
    try:
        (shape, source), _ = find_sizes(runner.cfg, None)
        # The hook has counted the whole model already.
        plan = hook.planned if hook else None
        budget: FlopBudget = (
            plan.whole if plan else whole_model_budget(runner.cfg, model)
        )
    except ValueError as error:
        return dict(of=f'not counted: {error}')
    densities, training = {}, 3 * budget.cost({})
    if hook is not None and hook.trainer is not None:
        trainer = hook.trainer
        assert hook.planned is not None
        mean = densities = hook.planned.densities_of(trainer.final_counts())
        if trainer.counts.changes:
            mean = trainer.counts.mean_densities(hook.steps)
        training = hook.used.training_flops(budget.cost, mean)
    return dict(
        inference=budget.cost(densities),
        dense=budget.dense,
        ratio=budget.ratio(densities),
        training_ratio=training / training_flops('dense', 0, budget.dense),
        of='2 x MACs of a forward pass of one test input of '
        f'{describe_shape(shape)} ({source}); training: forward and backward '
        'pass of such an input, without auxiliary heads',
    )


# Metrics of text that should be low.
OF_TEXT = ('nats', 'perplexity', 'bits_per_byte')


def order_of(name: str) -> int:
    """Return 1 if a metric should be high, -1 if low, 0 if unknown."""

    def matches(keys: list[str]) -> bool:
        return any(key.lower() in name.lower() for key in keys)

    # Words that MMEngine knows the best checkpoint by.
    if matches([*CheckpointHook._default_less_keys, *OF_TEXT]):
        return -1
    return int(matches(CheckpointHook._default_greater_keys))


def read_last(work_dir: str | Path) -> dict[str, Any]:
    """Return the newest readable record in a work dir, or {}."""
    for path in sorted(Path(work_dir).glob(f'*/{FILE}'), reverse=True):
        with suppress(OSError, ValueError):
            found = json.loads(path.read_text())
            if isinstance(found, dict):
                return found
    return {}


class RunRecordHook(Hook):
    """Hook that writes ``run.json`` and the first and last lines of a log.

    It works in the first process only, and changes nothing in the run but the
    ``meta`` of checkpoints, which hold the seconds of the training.

    Attributes:
        record (dict[str, Any]): Content of ``run.json``.
    """

    # After LoggerHook, whose lines its own follow.
    priority = 'LOWEST'

    def __init__(self) -> None:
        self.record: dict[str, Any] = {}
        self._seconds = 0.0
        self._since: float | None = None
        self._cannot_write = False
        self._hook: SparseTrainingHook | None = None

    def before_run(self, runner: Runner) -> None:
        """Log what is run."""
        if runner.rank == 0:
            self.record = dict(
                config=str(runner.cfg.filename or ''),
                started=datetime.now().astimezone().isoformat('T', 'seconds'),
                status='running',
                seconds=0.0,
                seed=runner.seed,
                versions=versions(),
                machine=machine(),
            )
            for line in first_lines(runner, self.record):
                runner.logger.info(line)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Take over seconds and metrics of the training that is resumed."""
        if runner._resume:
            self._seconds = checkpoint.get('meta', {}).get(SECONDS, 0.0)

    def before_train(self, runner: Runner) -> None:
        """Log the FLOPs, and write the record for the first time."""
        if runner.rank:
            return
        if self.record['seed'] != runner.seed:
            # MMEngine takes the checkpoint's after the first lines.
            self.record['seed'] = runner.seed
            runner.logger.info(f'Seed: {runner.seed}, of the resumed run')
        before = read_last(runner.work_dir) if runner._resume else {}
        model = unwrap(runner.model)
        hooks = (h for h in runner.hooks if isinstance(h, SparseTrainingHook))
        self._hook = next(hooks, None)
        found = sparse_backbone(model)
        self.record |= dict(
            member=found[1].describe_member() if found else {},
            flops=describe_flops(runner, model, self._hook),
            parameters=sum(p.numel() for p in model.parameters()),
            metrics=before.get('metrics', {}),
            best=before.get('best', {}),
        )
        self._count()
        runner.logger.info(flops_line(self.record))
        self._write(runner)

    def _count(self) -> None:
        """Count the active weights, which some algorithms change."""
        masks = describe_masks(self._hook)
        dense = self.record['parameters'] - masks.get('size', 0)
        self.record |= dict(
            masks=masks, active_parameters=dense + masks.get('active', 0)
        )

    def before_train_epoch(self, runner: Runner) -> None:
        """Start the clock."""
        self._since = time.perf_counter()

    def after_train_iter(self, *_: Any, **__: Any) -> None:
        """Add the seconds of an iteration."""
        self._tick()

    def before_val_epoch(self, runner: Runner) -> None:
        """Stop the clock: a validation is no training."""
        self._tick()

    def after_val_epoch(
        self, runner: Runner, metrics: dict[str, float] | None = None
    ) -> None:
        """Write metrics and seconds."""
        self._since = time.perf_counter()
        if runner.rank or not self.record:
            return
        best = self.record['best']
        for name, value in (metrics or {}).items():
            if not isinstance(value, Real):
                continue
            value = float(value) if math.isfinite(value) else None
            self.record['metrics'][name] = value
            sign = order_of(name) if value is not None else 0
            if sign and sign * value >= sign * best.get(name, value):
                best[name] = value
        self._count()
        self._write(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Store the seconds, for a resumed run."""
        self._tick()
        checkpoint['meta'][SECONDS] = self._seconds

    def after_train(self, runner: Runner) -> None:
        """Write the finished record, and log its summary."""
        if runner.rank:
            return
        self._since = None
        self._count()
        self.record['status'] = 'finished'
        self._write(runner)
        for line in last_lines(self.record, runner.work_dir):
            runner.logger.info(line)

    def _tick(self) -> None:
        """Add the seconds since the last call to those of the training."""
        if self._since is not None:
            now = time.perf_counter()
            self._seconds += now - self._since
            self._since = now

    def _write(self, runner: Runner) -> None:
        """Write the record; a full disk is a warning."""
        self.record['seconds'] = round(self._seconds, 3)
        path = Path(runner.log_dir, FILE)
        try:
            with written_whole(path, 'w') as file:
                json.dump(self.record, file, indent=1)
        except OSError as error:
            if not self._cannot_write:
                self._cannot_write = True
                runner.logger.warning(
                    f'{path} cannot be written ({error.strerror}): reports '
                    'will lack what this run is; the training goes on.'
                )
