"""Any config made quick to train, and what a sparse run has to hold to."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import mmdet.models.backbones as mmdet
import mmpretrain.models.backbones as mmpretrain
import mmseg.models.backbones as mmseg
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from helpers.texts import SMALL
from sift_mm.config.data import leaf_datasets
from sift_mm.engine import SparseTrainingHook

SIZES = ('scale', 'scales', 'crop_size', 'size', 'img_scale', 'border')
RESNETS = (mmdet.ResNet, mmpretrain.ResNet, mmseg.ResNet)
FLOAT32 = {
    'AmpOptimWrapper': 'OptimWrapper',
    'SparseAmpOptimWrapper': 'SparseOptimWrapper',
}


def without_pretrained(node: Any) -> None:
    """Remove the checkpoints that a model starts from.

    There are none here; that they are loaded is tested with the transfer.
    """
    if isinstance(node, dict):
        init = node.get('init_cfg')
        if isinstance(init, dict) and init.get('type') == 'Pretrained':
            node['init_cfg'] = None
        node.pop('pretrained', None)
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            without_pretrained(child)


def shrink(step: Any) -> None:
    """Reduce the images of a pipeline's step; keep their shape."""
    if isinstance(step, dict):
        for key in SIZES:
            if step.get(key) is not None:
                step[key] = small(step[key])
        step = list(step.values())
    if isinstance(step, (list, tuple)):
        for child in step:
            shrink(child)


@contextmanager
def shallow() -> Iterator[None]:
    """Limit ResNets to two blocks a stage, as in R-18."""
    with ExitStack() as stack:
        for kind in RESNETS:
            settings = {
                depth: (block, tuple(min(n, 2) for n in blocks))
                for depth, (block, blocks) in kind.arch_settings.items()
            }
            stack.enter_context(
                mock.patch.object(kind, 'arch_settings', settings)
            )
        yield


def small(size: Any) -> Any:
    """Return a size in pixels divided by about sixteen.

    Large ones stay multiples of 32, which networks halve five times. A border
    that is cut off, half an image, is negative.
    """
    if isinstance(size, (list, tuple)):
        found = [small(n) for n in size]
        # A list is one of several sizes to choose from.
        return found if isinstance(found[0], tuple) else tuple(found)
    if size < 0:
        return -small(-2 * size) // 2
    return max(min(size, 32), size // 512 * 32)


def narrow_data(loader: dict) -> None:
    loader.update(batch_size=2, num_workers=0, persistent_workers=False)
    for dataset in leaf_datasets(loader['dataset']):
        if 'indices' in dataset:
            dataset['indices'] = 4
        if 'context' in dataset:
            dataset.update(context=SMALL['context'], vocabulary=None)
    shrink(loader['dataset'])


def in_float32(cfg: Config) -> None:
    """Replace mixed precision, which needs a GPU, by float32."""
    wrapper = cfg.optim_wrapper
    if wrapper.get('type') in FLOAT32:
        wrapper.type = FLOAT32[wrapper.type]
        wrapper.pop('loss_scale', None)


def narrow_training(cfg: Config) -> None:
    in_float32(cfg)
    for hook in cfg.get('custom_hooks', []):
        if hook.type == 'SparseTrainingHook':
            hook.update(interval=1, end=1.0)  # The last update moves nothing.
    if 'max_iters' in cfg.train_cfg:
        cfg.train_cfg.update(max_iters=2, val_interval=2)
    else:
        cfg.train_cfg.update(max_epochs=1, val_interval=1)
    schedulers = cfg.get('param_scheduler', [])
    for scheduler in [schedulers] if 'type' in schedulers else schedulers:
        if 'end' not in scheduler and not scheduler.get('by_epoch', True):
            scheduler.begin = 0  # It ends with the run, after 2 iterations.
    cfg.default_hooks.checkpoint = None
    cfg.randomness = dict(seed=0)


class Watch(Hook):
    """Hook that records first masks, losses and validation."""

    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self.masks: dict[str, torch.Tensor] = {}
        self.losses: list[float] = []
        self.validated = False

    def before_train(self, runner: Runner) -> None:
        self.masks = {n: m.clone() for n, m in masks_of(runner).items()}

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        self.losses.append(outputs['loss'].item())

    def after_val_epoch(self, runner: Runner, metrics=None) -> None:
        self.validated = True


def masks_of(runner: Runner) -> dict[str, torch.Tensor]:
    trainer = getattr(runner.optim_wrapper, 'mask_trainer', None)
    return dict(trainer.masks.items()) if trainer else {}


def check_masks(
    runner: Runner,
    before: dict[str, torch.Tensor],
    hook: SparseTrainingHook,
    tolerance: float = 0.02,
) -> None:
    """Check exact counts, zeros outside masks, updates and FLOPs."""
    plan = hook.plan(runner.model, runner.cfg)
    after = masks_of(runner)
    weights = dict(runner.model.named_parameters())
    counts = {name: int(mask.sum()) for name, mask in after.items()}
    assert counts == {n: int(mask.sum()) for n, mask in before.items()}
    assert counts == plan.counts
    for name, mask in after.items():
        active = weights[name] != 0
        assert active.any() and not (active & ~mask).any(), name
    if after:
        moved = any(not torch.equal(m, before[n]) for n, m in after.items())
        assert moved == hook.options.algorithm.dynamic
    if plan.backbone.flops == 'match':
        assert abs(plan.ratio - 1) < tolerance
