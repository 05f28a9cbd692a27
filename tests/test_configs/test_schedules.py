"""The published recipes of CIFAR-100 and ImageNet, worked out by hand.

Learning rates are walked over all epochs, by MMEngine's own optim wrapper and
schedulers, with no training in between.
"""

import math

import pytest
from minirun import ROOT
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, DefaultScope
from narrow import in_float32
from torch import nn

from sift_mm.config.libraries import import_library

CIFAR = ROOT / 'configs/cifar100/resnet18_1xb128-200e_cifar100.py'
IMAGENET = [
    ROOT / f'configs/imagenet/resnet{depth}_8xb32-amp-90e_in1k.py'
    for depth in (18, 34, 50)
]
# What the baseline has to be trained alike in.
ALIKE = (
    *('train_cfg', 'param_scheduler', 'optim_wrapper', 'auto_scale_lr'),
    *('train_dataloader', 'val_dataloader', 'test_dataloader'),
    *('val_evaluator', 'test_evaluator', 'data_preprocessor'),
    *('default_hooks', 'randomness'),
)
# The authors' settings.
RIGL = dict(
    type='SparseTrainingHook',
    algorithm='RigL',
    distribution='Uniform',
    drop_fraction=0.3,
    interval=100,
    end=0.75,
)


def read(path):
    cfg = Config.fromfile(path)
    import_library(cfg)
    return cfg


def walk(cfg, epoch_length):
    """The learning rate of every iteration of a run."""
    in_float32(cfg)
    weight = nn.Linear(1, 1, bias=False)
    optimizer = build_optim_wrapper(weight, cfg.optim_wrapper).optimizer
    scheduler_cfg = dict(cfg.param_scheduler)
    kind = PARAM_SCHEDULERS.get(scheduler_cfg.pop('type'))
    if scheduler_cfg.pop('convert_to_iter_based', False):
        scheduler = kind.build_iter_from_epoch(
            optimizer, **scheduler_cfg, epoch_length=epoch_length
        )
    else:
        scheduler = kind(optimizer, **scheduler_cfg)
    rates = []
    for _ in range(cfg.train_cfg.max_epochs):
        for _ in range(epoch_length):
            rates.append(optimizer.param_groups[0]['lr'])
            if not scheduler.by_epoch:
                scheduler.step()
        if scheduler.by_epoch:
            scheduler.step()
    rates.append(optimizer.param_groups[0]['lr'])
    return rates


def test_cifar100_rates():
    cfg = read(CIFAR)
    length = math.ceil(50_000 / cfg.train_dataloader.batch_size)
    assert length == 391
    rates = walk(cfg, length)
    assert len(rates) == 200 * 391 + 1
    by_hand = 60 * [0.1] + 60 * [0.02] + 40 * [0.004] + 40 * [0.0008]
    for epoch, rate in enumerate(by_hand):
        found = rates[391 * epoch : 391 * (epoch + 1)]
        assert found == pytest.approx(391 * [rate], rel=1e-9), epoch


def test_imagenet_rates():
    cfg = read(IMAGENET[0])
    for path in IMAGENET[1:]:
        assert read(path).param_scheduler == cfg.param_scheduler
    # Eight processes; each has a sampler that rounds up.
    images = math.ceil(1_281_167 / 8)
    length = math.ceil(images / cfg.train_dataloader.batch_size)
    assert length == 5005
    rates = walk(cfg, length)
    last = 90 * 5005
    assert len(rates) == last + 1
    assert rates[0] == 0.256
    assert rates[-1] == pytest.approx(0, abs=1e-9)
    for i in [*range(0, last, 997), last - 1]:
        by_hand = 0.128 * (1 + math.cos(math.pi * i / last))
        assert rates[i] == pytest.approx(by_hand, rel=1e-6, abs=1e-10), i


FLIP = dict(type='RandomFlip', prob=0.5, direction='horizontal')
LOAD, PACK = dict(type='LoadImageFromFile'), dict(type='PackInputs')
SMOOTH = dict(type='LabelSmoothLoss', label_smooth_val=0.1, loss_weight=1.0)


def check_recipe(path, wrapper, batch, pipeline, evaluation, classes):
    cfg = read(path)
    assert cfg.optim_wrapper == wrapper
    train = cfg.train_dataloader
    assert (train.batch_size, train.sampler.shuffle) == (batch, True)
    assert train.dataset.pipeline == pipeline
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.pipeline == evaluation
    assert cfg.model.head.num_classes == classes
    # No width is given: 64 channels.
    backbone = cfg.model.backbone
    assert not {'family', 'base_channels', 'stem_channels'} & backbone.keys()
    return cfg, backbone


def test_the_recipe_of_cifar100():
    sgd = dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=0.0005)
    cfg, backbone = check_recipe(
        CIFAR,
        dict(type='OptimWrapper', optimizer=dict(sgd, nesterov=True)),
        128,
        [dict(type='RandomCrop', crop_size=32, padding=4), FLIP, PACK],
        [PACK],
        100,
    )
    assert cfg.auto_scale_lr == dict(base_batch_size=128)
    assert cfg.model.head.loss.type == 'CrossEntropyLoss'
    assert (backbone.type, backbone.depth) == ('SparseIFTResNet_CIFAR', 18)


@pytest.mark.parametrize('path', IMAGENET, ids=lambda path: path.stem)
def test_the_recipe_of_imagenet(path):
    sgd = dict(type='SGD', lr=0.256, momentum=0.875)
    sgd['weight_decay'] = 1 / 2**15  # 3.0517578125e-05
    crop = dict(type='CenterCrop', crop_size=224)
    cfg, backbone = check_recipe(
        path,
        dict(type='AmpOptimWrapper', loss_scale='dynamic', optimizer=sgd),
        32,
        [LOAD, dict(type='RandomResizedCrop', scale=224), FLIP, PACK],
        [LOAD, dict(type='ResizeEdge', scale=256, edge='short'), crop, PACK],
        1000,
    )
    assert cfg.train_cfg.max_epochs == 90
    assert cfg.auto_scale_lr == dict(base_batch_size=8 * 32)
    assert cfg.val_dataloader.dataset.split == 'val'
    assert cfg.test_dataloader.dataset.split == 'val'
    assert cfg.model.head.loss == SMOOTH
    assert backbone.type == 'SparseIFTResNet'
    assert f'resnet{backbone.depth}_' in path.name


@pytest.mark.parametrize('path', [CIFAR, IMAGENET[0]], ids=lambda p: p.stem)
def test_validation_reads_other_images(path, in_checkout):
    from mmpretrain.registry import DATASETS

    cfg = read(path)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        sizes = [
            len(DATASETS.build(cfg[f'{phase}_dataloader'].dataset))
            for phase in ('train', 'val', 'test')
        ]
    assert sizes == [4, 2, 2]


@pytest.mark.parametrize('path', [CIFAR, *IMAGENET], ids=lambda p: p.stem)
def test_siblings_are_trained_alike(path):
    dense = read(path)
    network = path.name.partition('_')[0]
    siblings = sorted(path.parent.glob(f'{network}-sift-*.py'))
    assert len(siblings) in (4, 6)
    for sibling in siblings:
        cfg = read(sibling)
        for key in ALIKE:
            assert cfg[key] == dense[key], (sibling.name, key)
        wide = cfg.model.head.in_channels
        assert cfg.model.head == dense.model.head | dict(in_channels=wide)
        backbone = dict(cfg.model.backbone)
        backbone.pop('family'), backbone.pop('sparsity')
        assert backbone == dense.model.backbone, sibling.name
        assert cfg.model.neck == dense.model.neck
        assert cfg.custom_hooks == [RIGL], sibling.name
