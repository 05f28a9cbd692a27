"""``--family wide --sparsity 0.75`` on the libraries' own configs.

Each trains two iterations with RigL on generated data. Backbones stay of the
library's class; like necks and heads they are narrowed by their arguments.
"""

import math
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner

from helpers import datasets
from helpers.small_configs import (
    Watch,
    check_masks,
    in_float32,
    masks_of,
    narrow_data,
    small,
)
from helpers.sparse_runs import final
from sift_mm.config.building import replace_sync_norms
from sift_mm.config.data import check_data
from sift_mm.config.loading import read_config
from sift_mm.engine import SparseTrainingHook
from sift_mm.engine.launch import (
    build_runner,
    set_loader_defaults,
)
from sift_mm.flops import count_flops

MEMBER = dict(family='wide', sparsity=0.75, algorithm='RigL')
# The last of two updates moves nothing.
HOOK = dict(interval=1, end=1.0)


def classifier(width: int, **backbone: Any) -> dict[str, Any]:
    options = {f'model.backbone.{k}': v for k, v in backbone.items()}
    return {'model.head.in_channels': width, **options}


def dense_head(width: int = 16, **more: Any) -> dict[str, Any]:
    return {
        'model.neck.out_channels': width,
        'model.bbox_head.in_channels': width,
        'model.bbox_head.feat_channels': width,
        'model.bbox_head.stacked_convs': 1,
    } | {f'model.{k.replace("__", ".")}': v for k, v in more.items()}


RESNET = {
    'model.backbone.base_channels': 16,
    'model.backbone.stem_channels': 16,
}
TWO_STAGES = RESNET | {
    'model.neck.out_channels': 16,
    'model.rpn_head.in_channels': 16,
    'model.rpn_head.feat_channels': 16,
    'model.roi_head.bbox_roi_extractor.out_channels': 16,
    'model.roi_head.bbox_head.in_channels': 16,
    'model.roi_head.bbox_head.fc_out_channels': 16,
    'model.train_cfg.rpn_proposal.nms_pre': 20,
    'model.train_cfg.rpn_proposal.max_per_img': 20,
    'model.train_cfg.rcnn.sampler.num': 16,
}


def hrnet() -> dict[str, Any]:
    options: dict[str, Any] = {
        'model.decode_head.in_channels': [8, 16, 32, 64],
        'model.decode_head.channels': 120,
    }
    for stage in range(1, 5):
        key = f'model.backbone.extra.stage{stage}'
        options[f'{key}.num_modules'] = 1
        options[f'{key}.num_blocks'] = (1,) * stage
        if stage > 1:
            widths = tuple(8 * 2**i for i in range(stage))
            options[f'{key}.num_channels'] = widths
    return options


CONFIGS: dict[str, dict[str, Any]] = {
    'mmpretrain::convnext/convnext-tiny_32xb128_in1k.py': classifier(
        128,
        arch=dict(
            _delete_=True, depths=[1, 1, 2, 1], channels=[16, 32, 64, 128]
        ),
    ),
    # The learning rate decays with the depth of a layer, read off its name.
    'mmpretrain::mae/benchmarks/vit-base-p16_8xb128-coslr-100e_in1k.py': (
        classifier(
            48,
            arch=dict(
                _delete_=True,
                embed_dims=48,
                num_layers=3,
                num_heads=3,
                feedforward_channels=192,
            ),
            img_size=32,
        )
    ),
    'mmdet::yolox/yolox_s_8xb8-300e_coco.py': dense_head(
        backbone__widen_factor=0.25,
        neck__in_channels=[64, 128, 256],
    ),
    'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py': TWO_STAGES
    | {
        'model.roi_head.mask_roi_extractor.out_channels': 16,
        'model.roi_head.mask_head.in_channels': 16,
        'model.roi_head.mask_head.conv_out_channels': 16,
        'model.roi_head.mask_head.num_convs': 1,
    },
    'mmseg::hrnet/fcn_hr18_4xb2-40k_cityscapes-512x1024.py': hrnet(),
    'mmseg::segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py': {
        'model.backbone.embed_dims': 16,
        'model.backbone.num_layers': [1, 1, 1, 1],
        'model.decode_head.in_channels': [16, 32, 80, 128],
        'model.decode_head.channels': 16,
    },
}


@pytest.fixture(scope='module')
def library_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder whose ``data`` holds what the libraries' configs read."""
    root = tmp_path_factory.mktemp('libraries')
    data = root / 'data'
    datasets.mini_imagenet(
        data / 'imagenet', num_train=1, num_val=1, num_classes=2
    )
    datasets.mini_coco(data / 'coco', num_train=2, num_val=1, size=(64, 64))
    datasets.mini_cityscapes(data / 'cityscapes', num_train=2, num_val=1)
    return root


@pytest.fixture(autouse=True)
def in_library_data(
    library_data: Path, fresh_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run in the folder of the data."""
    monkeypatch.chdir(library_data)


def read(name: str, **member: Any) -> Config:
    """Read the config like the tools and shrink its run."""
    cfg = read_config(name, CONFIGS[name], **member)
    # A dense network's would not fit.
    assert not (member and 'checkpoint' in str(cfg.model))
    check_data(cfg, ['train'])
    replace_sync_norms(cfg.model)
    for preprocessor in (cfg.model, cfg):
        preprocessor = preprocessor.get('data_preprocessor') or {}
        if preprocessor.get('size') is not None:
            preprocessor['size'] = small(preprocessor['size'])
    in_float32(cfg)
    narrow_data(cfg.train_dataloader)
    set_loader_defaults(cfg, 'train')
    # Two epochs of one iteration, or two iterations, each with a checkpoint.
    if 'max_iters' in cfg.train_cfg:
        cfg.train_cfg.max_iters = 2
    else:
        cfg.train_cfg.max_epochs = 2
    cfg.default_hooks.checkpoint.update(interval=1)
    for key in ('val_dataloader', 'val_cfg', 'val_evaluator'):
        cfg[key] = None
    for hook in cfg.get('custom_hooks') or []:
        # What comes late in a run comes before its second epoch.
        if 'num_last_epochs' in hook:
            hook['num_last_epochs'] = 0
    schedules = cfg.param_scheduler
    for one in schedules if isinstance(schedules, list) else [schedules]:
        if one.get('begin'):
            one['begin'] = 1
    cfg.randomness = dict(seed=0)
    return cfg


def train(cfg: Config, work_dir: Path) -> tuple[Runner, Watch]:
    cfg.work_dir = str(work_dir)
    runner = build_runner(cfg)
    watch = Watch()
    runner.register_hook(watch)
    runner.train()
    return runner, watch


def dense_flops(cfg: Config, shape: tuple[int, int]) -> float:
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        backbone = MODELS.build(cfg.model.backbone)
    return count_flops(backbone, shape).total


@pytest.mark.parametrize('name', CONFIGS)
def test_a_librarys_config_trains_at_the_dense_flops(
    name: str, tmp_path: Path
) -> None:
    runner, watch = train(read(name, hook=HOOK, **MEMBER), tmp_path)
    assert len(watch.losses) == 2
    assert all(map(math.isfinite, watch.losses))
    (hook,) = [h for h in runner.hooks if isinstance(h, SparseTrainingHook)]
    check_masks(runner, watch.masks, hook, 1e-3)
    # The twin is the backbone that the config has without the options.
    backbone = runner.model.backbone
    own = count_flops(backbone, backbone.match_shape)
    masks = masks_of(runner)
    densities = {
        n.removeprefix('backbone.'): float(m.float().mean())
        for n, m in masks.items()
    }
    dense = dense_flops(read(name), backbone.match_shape)
    assert own.sparse(densities) == pytest.approx(dense, rel=1e-3)
    # The interface of a wrapped one is as wide, so that all else costs the
    # same; features of a ResNet grow, and neck or head read them.
    ratio = final(tmp_path)['sparse_training']['budget']['model_flops_ratio']
    if backbone.growth > 1:
        assert 1 < ratio < 1.5
    else:
        assert ratio == pytest.approx(1, abs=1e-3)
    # Averaged weights are as sparse.
    for other in runner.hooks:
        if isinstance(other, EMAHook):
            weights = dict(other.ema_model.module.named_parameters())
            for key, mask in masks.items():
                assert not weights[key][~mask].any(), key


def test_weights_known_by_the_networks_name_are_taken_out() -> None:
    # pretrained=True; timm, which knows them, need not be installed.
    name = 'mmdet::timm_example/retinanet_timm-efficientnet-b1_fpn_1x_coco.py'
    cfg = read_config(name, **MEMBER)
    assert cfg.model.backbone.type == 'SparseIFT'
    assert cfg.model.backbone.backbone.pretrained is False
