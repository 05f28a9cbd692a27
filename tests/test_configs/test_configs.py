"""Two iterations of every config, on networks made narrow."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from minirun import ROOT
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from sift_mm.cli import train
from sift_mm.config.channels import fit_channels
from sift_mm.config.data import check_data, leaf_datasets
from sift_mm.config.reading import import_library, load_run_config
from sift_mm.engine import SparseTrainingHook
from sift_mm.engine.launch import build_runner, replace_sync_norms
from sift_mm.engine.plan import sparse_backbone

# The stem of an ImageNet network of width 8 costs more than a Sparse Wide one
# at sparsity 0.9 may cost as a whole.
WIDTH = 16
WIDTH_CIFAR = 8
NECKS_AND_HEADS = {
    'neck': ('out_channels',),
    'bbox_head': ('in_channels', 'feat_channels'),
    'decode_head': ('channels', 'c1_channels'),
    'auxiliary_head': ('channels',),
}
SIZES = ('scale', 'crop_size', 'size', 'img_scale')
FLOAT32 = {
    'AmpOptimWrapper': 'OptimWrapper',
    'SparseAmpOptimWrapper': 'SparseOptimWrapper',
}
CONFIGS = sorted(
    path.relative_to(ROOT / 'configs').as_posix()
    for path in (ROOT / 'configs').rglob('*.py')
    if '_base_' not in path.parts
)


def narrow(cfg: Config) -> None:
    """Makes the run of any config a matter of a second on a CPU.

    What the config is about stays: family, sparsity, algorithm, optimizer,
    kinds of schedules, pipelines and losses.
    """
    without_pretrained(cfg.model)
    replace_sync_norms(cfg.model)
    narrow_model(cfg)
    for phase in ('train', 'val'):
        narrow_data(cfg[f'{phase}_dataloader'])
    narrow_training(cfg)


def without_pretrained(node: Any) -> None:
    """Takes out the checkpoints that a model starts from.

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


def narrow_model(cfg: Config) -> None:
    backbone = cfg.model.backbone
    width = WIDTH_CIFAR if backbone.type.endswith('_CIFAR') else WIDTH
    width = min(width, backbone.get('base_channels', width))
    backbone.update(base_channels=width, stem_channels=width)
    for part, keys in NECKS_AND_HEADS.items():
        for key in keys:
            if key in (cfg.model.get(part) or {}):
                cfg.model[part][key] = WIDTH
    preprocessor = cfg.model.get('data_preprocessor') or {}
    shrink(preprocessor)
    fit_channels(cfg)


def shrink(step: dict) -> None:
    """Makes the images of a pipeline's step small, of the same shape."""
    for key in SIZES:
        size = step.get(key)
        if isinstance(size, int):
            step[key] = max(min(size, 32), size // 16)
        elif size is not None:
            step[key] = tuple(max(min(n, 32), n // 16) for n in size)


def narrow_data(loader: dict) -> None:
    loader.update(batch_size=2, num_workers=0, persistent_workers=False)
    for dataset in leaf_datasets(loader['dataset']):
        if 'indices' in dataset:
            dataset['indices'] = 4
        for step in dataset['pipeline']:
            shrink(step)


def narrow_training(cfg: Config) -> None:
    wrapper = cfg.optim_wrapper
    if wrapper.get('type') in FLOAT32:  # Mixed precision needs a GPU.
        wrapper.type = FLOAT32[wrapper.type]
        wrapper.pop('loss_scale', None)
    for hook in cfg.get('custom_hooks', []):
        if hook.type == 'SparseTrainingHook':
            hook.update(interval=1, end=1.0)  # The last update moves nothing.
    if 'max_iters' in cfg.train_cfg:
        cfg.train_cfg.update(max_iters=2, val_interval=2)
    else:
        cfg.train_cfg.update(max_epochs=1, val_interval=1)
    cfg.default_hooks.checkpoint = None
    cfg.randomness = dict(seed=0)


class Watch(Hook):
    """Keeps what a run was like on the way."""

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


@pytest.mark.parametrize('name', CONFIGS)
def test_a_config_trains_and_keeps_its_density(
    name: str, tmp_path: Path, in_checkout: None
) -> None:
    config = str(ROOT / 'configs' / name)
    args = train.parse_args([config, '--work-dir', str(tmp_path)])
    cfg = train.merge_args(load_run_config(args), args)
    check_name(name, cfg)
    check_data(cfg, ['train', 'val'])
    import_library(cfg)
    narrow(cfg)
    runner = build_runner(cfg)
    watch = Watch()
    runner.register_hook(watch)
    runner.train()
    assert len(watch.losses) == 2
    assert all(map(math.isfinite, watch.losses))
    assert watch.validated
    hooks = [h for h in runner.hooks if isinstance(h, SparseTrainingHook)]
    if sparse_backbone(runner.model) is None:
        assert not hooks
        assert type(runner.optim_wrapper).__name__ == 'OptimWrapper'
    else:
        check_masks(runner, watch.masks, *hooks)


def check_name(name: str, cfg: Config) -> None:
    """The name of a file says what its network and its masks are."""
    backbone = cfg.model.backbone
    found = re.search(r'-sift-([a-z-]+)-s(\d+)[-_]', name)
    if found is not None:
        assert backbone.family == found[1].replace('-', '_')
        assert backbone.sparsity == int(found[2]) / 100
    elif 'sift' not in name:
        assert backbone.get('family') is None
    if '_rigl-' in name:
        assert [hook.algorithm for hook in cfg.custom_hooks] == ['RigL']


def check_masks(
    runner: Runner,
    before: dict[str, torch.Tensor],
    hook: SparseTrainingHook,
) -> None:
    plan = hook.plan(runner.model)
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
        assert moved == hook.algorithm.dynamic
    if runner.model.backbone.flops == 'match':
        assert 0.98 < plan.ratio < 1.02
