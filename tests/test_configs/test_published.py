"""Every published recipe, against one table of the published values.

Values are those of the paper (arXiv 2303.11525, appendix) and of the authors'
code (CerebrasResearch/Sparse-IFT, ComputerVision/CIFAR and ImageNet: configs,
scripts/launch_pretraining.sh, main.py, models); of detection and segmentation,
where the paper takes the libraries' standard settings, the public ones.
Learning rates are walked over all epochs by MMEngine's own schedulers.
"""

import math

import pytest
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, DefaultScope
from torch import nn

from helpers.runs import ROOT
from helpers.small_configs import in_float32
from sift_mm.config.building import build
from sift_mm.config.loading import import_library, read_config
from sift_mm.engine.plan import MaskPlan

FLIP = dict(type='RandomFlip', prob=0.5, direction='horizontal')
LOAD, PACK = dict(type='LoadImageFromFile'), dict(type='PackInputs')
SMOOTH = dict(type='LabelSmoothLoss', label_smooth_val=0.1, loss_weight=1.0)
# maskopt_*: drop fraction 0.3 with cosine, frequency 100, uniform, random; the
# last update at 0.75 of the steps.
RIGL = dict(
    type='SparseTrainingHook',
    algorithm='RigL',
    distribution='Uniform',
    drop_fraction=0.3,
    interval=100,
    end=0.75,
)
# What a family sets, with flops: the authors solve the sparsity of Wide alone.
NOMINAL = dict(flops='nominal')
PUBLISHED = {
    'cifar100': dict(
        epochs=200,
        batch=128,
        gpus=1,
        # The last three: Nesterov; decay of norms and biases.
        optimizer=('SGD', 0.1, 0.9, 5e-4, True, 5e-4),
        amp=False,
        # (epochs, rate): milestones 60, 120, 160 with a scheduler that steps
        # behind an epoch with that epoch's index.
        rates=[(61, 0.1), (60, 0.02), (40, 0.004), (39, 0.0008)],
        loss='CrossEntropyLoss',
        train=[dict(type='RandomCrop', crop_size=32, padding=4), FLIP, PACK],
        evaluation=[PACK],
        classes=100,
        backbone='SparseIFTResNet_CIFAR',
        families=dict(
            wide={},
            parallel=NOMINAL,
            factorized=NOMINAL | dict(inner='norm_act'),
            doped=NOMINAL,
        ),
        # Behind a branch: BN(conv).
        parallel='norm',
    ),
    'imagenet': dict(
        epochs=90,
        batch=32,
        gpus=8,
        optimizer=('SGD', 0.256, 0.875, 3.0517578125e-05, False, 0.0),
        amp=True,
        rates=[
            (1, 0.128 * (1 + math.cos(math.pi * epoch / 90)))
            for epoch in range(90)
        ],
        loss=SMOOTH,
        train=[LOAD, dict(type='RandomResizedCrop', scale=224), FLIP, PACK],
        evaluation=[
            LOAD,
            dict(type='ResizeEdge', scale=256, edge='short'),
            dict(type='CenterCrop', crop_size=224),
            PACK,
        ],
        classes=1000,
        backbone='SparseIFTResNet',
        families=dict(wide={}, parallel=NOMINAL),
        # ReLU(BN(conv)).
        parallel='norm_act',
    ),
}
# Sparsities of the tables, of all data sets.
SPARSITIES = {0.5, 0.75, 0.9}
# The libraries' standard settings: iterations or epochs, data, images a step.
STANDARD = {
    'retinanet': (12, 'train2017', 'val2017', 16),
    'deeplabv3plus': (80_000, 'leftImg8bit/train', 'leftImg8bit/val', 8),
}
RECIPES = [
    (name, path)
    for name in PUBLISHED
    for path in sorted((ROOT / 'configs' / name).glob('*.py'))
]
IDS = [path.stem for _, path in RECIPES]


def read(path):
    cfg = read_config(str(path))
    import_library(cfg)
    return cfg


@pytest.mark.parametrize('name, path', RECIPES, ids=IDS)
def test_a_recipe_is_the_published_one(name, path):
    cfg, table = read(path), PUBLISHED[name]
    assert cfg.train_cfg.max_epochs == table['epochs']
    train = cfg.train_dataloader
    assert (train.batch_size, train.sampler.shuffle) == (table['batch'], True)
    images = table['batch'] * table['gpus']
    assert cfg.auto_scale_lr == dict(base_batch_size=images)
    assert train.dataset.pipeline == table['train']
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.pipeline == table['evaluation']
    assert cfg.model.head.num_classes == table['classes']
    loss = cfg.model.head.loss
    assert table['loss'] in (loss, loss.type)
    wrapper = cfg.optim_wrapper
    assert (wrapper.type == 'AmpOptimWrapper') is table['amp']
    check_backbone(cfg, table, path.stem)
    check_rates(cfg, table)


def check_backbone(cfg, table, name):
    backbone = dict(cfg.model.backbone)
    assert backbone.pop('type') == table['backbone']
    assert name.startswith(f'resnet{backbone["depth"]}')
    # No width is given: 64 channels; and no other start than the default.
    given = {'base_channels', 'stem_channels', 'zero_init_residual'}
    assert not given & backbone.keys()
    family = backbone.get('family')
    if family is None:
        assert 'custom_hooks' not in cfg
        return
    assert cfg.custom_hooks == [RIGL]
    assert backbone['sparsity'] in SPARSITIES
    options = {key: backbone.get(key) for key in ('flops', 'inner')}
    expected = dict(flops=None, inner=None) | table['families'][family]
    assert options == expected


def check_rates(cfg, table):
    kind, rate, momentum, decay, nesterov, norms = table['optimizer']
    rates = [lr for epochs, lr in table['rates'] for _ in range(epochs)]
    assert len(rates) == table['epochs']
    in_float32(cfg)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)
    )
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    assert type(optimizer).__name__ == kind
    for group in optimizer.param_groups:
        assert (group['lr'], group['momentum']) == (rate, momentum)
        assert group['nesterov'] is nesterov
        for parameter in group['params']:
            expected = decay if parameter.dim() > 1 else norms
            assert group['weight_decay'] == expected
    scheduler = dict(cfg.param_scheduler)
    assert scheduler.pop('by_epoch')
    steps = PARAM_SCHEDULERS.get(scheduler.pop('type'))(
        optimizer, by_epoch=True, **scheduler
    )
    for epoch, expected in enumerate(rates):
        found = optimizer.param_groups[0]['lr']
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12), epoch
        steps.step()


@pytest.mark.parametrize('name', PUBLISHED)
def test_networks_and_masks(name):
    table = PUBLISHED[name]
    networks = {}
    for other, path in RECIPES:
        if other == name and 'resnet18' in path.name and '-s75' in path.name:
            backbone = build(read(path), 'backbone')
            networks[backbone.family] = backbone
    assert networks.keys() == table['families'].keys()
    assert networks['parallel'].member.inner == table['parallel']
    for family, backbone in networks.items():
        # The last norm of a block starts at zero in plain blocks alone.
        assert backbone.zero_init_residual is (family == 'wide')
        solved = MaskPlan(backbone).solved_sparsity
        assert (solved == 0.75) is (family != 'wide')


@pytest.mark.parametrize('name', STANDARD)
def test_detection_and_segmentation_are_the_libraries_standard(name):
    length, train, val, images = STANDARD[name]
    for path in (ROOT / 'configs' / name).glob('*.py'):
        cfg = read(path)
        limits = cfg.train_cfg
        assert limits.get('max_epochs', limits.get('max_iters')) == length
        for loader, folder in (('train', train), ('val', val)):
            prefix = cfg[f'{loader}_dataloader'].dataset.data_prefix
            found = prefix.get('img', prefix.get('img_path'))
            assert found.rstrip('/') == folder
        loader = cfg.train_dataloader
        gpus = 4 if '_4xb2' in path.name else 8
        assert loader.batch_size * gpus == images
        sparsity = cfg.model.backbone.get('sparsity')
        assert sparsity is None or sparsity in SPARSITIES
        assert cfg.model.backbone.get('family') in (None, 'wide')


@pytest.mark.parametrize('name', PUBLISHED)
def test_validation_reads_other_images(name, in_checkout):
    from mmpretrain.registry import DATASETS

    cfg = read(next(path for other, path in RECIPES if other == name))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        sizes = [
            len(DATASETS.build(cfg[f'{phase}_dataloader'].dataset))
            for phase in ('train', 'val', 'test')
        ]
    assert sizes == [4, 2, 2]
