"""Two iterations of every config, on networks made narrow."""

import math
import re

import pytest

from helpers.runs import ROOT
from helpers.small_configs import (
    Watch,
    check_masks,
    narrow_data,
    narrow_training,
    shrink,
    without_pretrained,
)
from helpers.texts import SMALL
from sift_mm.backbones import SparseIFTMixin
from sift_mm.cli import train
from sift_mm.config.building import build, replace_sync_norms
from sift_mm.config.channels import follow
from sift_mm.config.checks import backbone_node
from sift_mm.config.data import check_data
from sift_mm.config.loading import import_library, load_run_config
from sift_mm.engine import SparseTrainingHook
from sift_mm.engine.launch import build_runner
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
CONFIGS = sorted(
    path.relative_to(ROOT / 'configs').as_posix()
    for path in (ROOT / 'configs').rglob('*.py')
    if '_base_' not in path.parts
)


def narrow(cfg):
    """Reduce the run of any config to a second on a CPU.

    What the config is about stays: family, sparsity, algorithm, optimizer,
    kinds of schedules, pipelines and losses.
    """
    without_pretrained(cfg.model)
    replace_sync_norms(cfg.model)
    narrow_model(cfg)
    for phase in ('train', 'val'):
        narrow_data(cfg[f'{phase}_dataloader'])
    narrow_training(cfg)


def narrow_model(cfg):
    if cfg.model.type == 'GPT':
        cfg.model.update(SMALL)
        return
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
    wide = build(cfg, 'backbone')
    if isinstance(wide, SparseIFTMixin):
        follow(cfg.model, wide)


def is_repeated(name):
    """Return True if a narrow run of another config has the same code.

    Sparsities and epochs are narrowed too, and ResNet-34 to the blocks of
    ResNet-18; members of Fashion-MNIST are trained on CIFAR-100. Chains are
    run as they are by their own test.
    """
    same = (
        'retinanet_sift_wide_r18.py', 'retinanet_r18-in1k-pre', 'resnet34',
        'resnet50-sift-parallel', 'resnet50_8xb32', 'gpt3-small-sift', '_set-',
        '-w16', '-w8', 'w4-sift-parallel', 'w4-sift-doped',
        'w4-sift-factorized',
    )  # fmt: skip
    return bool(re.search('-s(50|90)[-_]', name)) or any(
        part in name for part in same
    )


@pytest.mark.parametrize('name', CONFIGS)
def test_a_config_trains_and_keeps_its_density(name, tmp_path, in_checkout):
    config = str(ROOT / 'configs' / name)
    args = train.parse_args([config, '--work-dir', str(tmp_path)])
    cfg = train.merge_args(load_run_config(args), args)
    check_name(name, cfg)
    check_data(cfg, ['train', 'val'])
    if is_repeated(name):
        return
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


def check_name(name, cfg):
    """Check that a file's name fits its network and masks."""
    backbone = backbone_node(cfg)
    found = re.search(r'-sift-([a-z-]+)-s(\d+)[-_]', name)
    if found is not None:
        assert backbone.family == found[1].replace('-', '_')
        assert backbone.sparsity == int(found[2]) / 100
    elif 'sift' not in name:
        assert backbone.get('family') is None
    for algorithm in ('RigL', 'SET'):
        if f'_{algorithm.lower()}-' in name:
            hooks = [hook.algorithm for hook in cfg.custom_hooks]
            assert hooks == [algorithm]
