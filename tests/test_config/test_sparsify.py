"""Sparse-IFT in configs: helpers for files, and changing a config."""

import pytest
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.hooks import EMAHook
from torch import nn

from helpers.runs import write_config
from sift_mm.cli.train import parse_args
from sift_mm.config import classifier, detector, segmentor, sparsify
from sift_mm.config.family_options import MemberOptions
from sift_mm.config.loading import load_config, load_run_config
from sift_mm.config.nodes import type_name
from sift_mm.config.resume import check_checkpoint
from sift_mm.errors import UserError

WIDE = '--family', 'wide', '--sparsity', '0.75'
PRETRAINED = dict(type='Pretrained', checkpoint='mine.pth', prefix='backbone.')
RETINANET = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'


def read(path, *argv):
    return load_config(parse_args([str(path), *argv]))


@pytest.fixture
def mini(tmp_path):
    """Read the small config of a library with options."""
    return lambda scope, *argv: read(
        write_config(tmp_path, scope, tmp_path), *argv
    )


def test_helpers_write_what_follows_from_the_sparsity():
    # 64 * sqrt(4) = 128; at 0.9, int(64 * sqrt(10)) = 202.
    assert classifier('wide', 0.75) == dict(
        backbone=dict(family='wide', sparsity=0.75),
        head=dict(in_channels=1024),
    )
    assert detector('wide', 0.9)['neck'] == dict(
        in_channels=[202, 404, 808, 1616]
    )
    assert segmentor('wide', 0.75, expansion=4) == dict(
        backbone=dict(family='wide', sparsity=0.75),
        decode_head=dict(in_channels=4096, c1_in_channels=512),
        auxiliary_head=dict(in_channels=2048),
    )
    # The features of the others are no wider.
    assert detector('parallel', 0.9, base_channels=8)['neck'] == dict(
        in_channels=[8, 16, 32, 64]
    )
    start = detector('wide', 0.5, checkpoint='a.pth')['backbone']['init_cfg']
    assert start == PRETRAINED | dict(checkpoint='a.pth')


@pytest.mark.parametrize(
    'scope, kind, widths',
    [
        ('mmdet', 'ResNet', dict(neck=[16, 32, 64, 128])),
        ('mmseg', 'ResNet', dict(decode_head=128, auxiliary_head=64)),
        ('mmpretrain', 'ResNet_CIFAR', dict(head=128)),
    ],
)
def test_a_dense_config_becomes_a_sparse_one(scope, kind, widths, mini):
    # Of the libraries' own types: ResNet, ResNetV1c, ResNet_CIFAR.
    cfg = mini(scope)
    sparsify(cfg, 'wide', 0.75)
    backbone = cfg.model.backbone
    assert backbone.type == f'SparseIFT{kind}'
    assert (backbone.family, backbone.sparsity) == ('wide', 0.75)
    assert bool(backbone.get('deep_stem')) == (scope == 'mmseg')  # V1c.
    assert cfg.optim_wrapper.type == 'OptimWrapper'  # The hook does it.
    assert 'sift_mm' in cfg.custom_imports['imports']
    assert [h['type'] for h in cfg.custom_hooks] == ['SparseTrainingHook']
    assert {key: cfg.model[key].in_channels for key in widths} == widths
    # Another member of it, in one more call.
    sparsify(cfg, 'parallel', algorithm='SET')
    assert (backbone.family, backbone.sparsity) == ('parallel', 0.75)
    assert [h['algorithm'] for h in cfg.custom_hooks] == ['SET']
    if scope == 'mmdet':
        assert cfg.model.neck.in_channels == [8, 16, 32, 64]


def test_other_hooks_and_half_precision_stay(mini):
    cfg = mini('mmpretrain')
    built = EMAHook()
    mine = dict(type='SparseTrainingHook', interval=7)
    cfg.custom_hooks = [built, dict(type='EMAHook'), mine]
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    sparsify(cfg, 'doped', 0.5, 'Static')
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert cfg.custom_hooks == [
        built,
        dict(type='EMAHook'),
        dict(type='SparseTrainingHook', interval=7, algorithm='Static'),
    ]


def test_what_cannot_be_made_sparse_is_named(mini):
    cfg = mini('mmpretrain')
    with pytest.raises(ValueError, match='sparsity=None; give both'):
        sparsify(cfg, 'wide')
    with pytest.raises(ValueError, match="family 'wider'.*parallel"):
        sparsify(cfg, 'wider', 0.5)
    cfg = mini('mmpretrain')
    del cfg.model['backbone']
    with pytest.raises(ValueError, match='no model.backbone'):
        sparsify(cfg, 'wide', 0.5)
    cfg = mini('mmpretrain')
    with pytest.raises(ValueError, match='drop_fracton: did you mean drop_f'):
        sparsify(cfg, 'wide', 0.5, hook=dict(drop_fracton=0.5))
    cfg.optim_wrapper = None
    with pytest.raises(ValueError, match='no optim_wrapper.*algorithm'):
        sparsify(cfg, 'wide', 0.5, 'SET')


def test_weights_of_the_zoo_are_left_and_all_stages_learn():
    cfg = read(RETINANET)
    assert cfg.model.backbone.frozen_stages == 1
    sparsify(cfg, 'wide', 0.75)
    backbone = cfg.model.backbone
    assert backbone.init_cfg is None
    assert (backbone.frozen_stages, backbone.norm_eval) == (-1, False)
    # A file of one's own may be of the new network.
    cfg = read(RETINANET)
    cfg.model.backbone.init_cfg.checkpoint = 'mine.pth'
    sparsify(cfg, 'wide', 0.75)
    assert cfg.model.backbone.init_cfg.checkpoint == 'mine.pth'
    assert cfg.model.backbone.frozen_stages == 1


def test_norms_of_caffes_weights_learn_from_scratch():
    cfg = read('mmdet::retinanet/retinanet_r50-caffe_fpn_1x_coco.py')
    cfg.model.backbone.base_channels = 8
    cfg.model.neck.in_channels = [32, 64, 128, 256]
    cfg.load_from = 'https://example.org/coco.pth'
    sparsify(cfg, 'parallel', 0.5)
    assert cfg.load_from is None
    norms = [
        m
        for m in MODELS.build(cfg.model.backbone).modules()
        if isinstance(m, nn.BatchNorm2d)
    ]
    assert norms and all(m.weight.requires_grad for m in norms)


@pytest.mark.parametrize(
    'path',
    [
        RETINANET,
        'mmseg::deeplabv3plus/'
        'deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024.py',
    ],
)
def test_a_checkpoint_of_the_member_by_option(path):
    dense = read(path)
    options = '--pretrained', 'mine.pth', '--algorithm', 'SET'
    cfg = read(path, *WIDE, *options)
    backbone = cfg.model.backbone
    assert backbone.init_cfg == PRETRAINED
    assert cfg.model.get('pretrained') is None
    assert cfg.custom_hooks[-1] == dict(
        type='SparseTrainingHook', algorithm='SET', transfer='train'
    )
    # What is frozen stays so, as it does in the dense network.
    for key in ('frozen_stages', 'norm_eval'):
        assert backbone.get(key) == dense.model.backbone.get(key)


def test_the_dense_baseline_starts_from_a_checkpoint_alike():
    cfg = read(RETINANET, '--pretrained', 'mine.pth')
    dense = read(RETINANET)
    dense.model.backbone.init_cfg = PRETRAINED
    assert cfg.to_dict() == dense.to_dict()
    # A run that is resumed is not told to forget where.
    cfg = read(RETINANET)
    cfg.update(load_from='epoch_1.pth', resume=True)
    sparsify(cfg, 'wide', 0.75, pretrained='mine.pth')
    assert cfg.load_from == 'epoch_1.pth'


def test_types_keep_their_scope(mini):
    cfg = mini('mmdet')
    cfg.model.backbone.type = 'mmdet.ResNet'
    cfg.custom_hooks = [dict(type='mmengine.SparseTrainingHook')]
    sparsify(cfg, 'parallel', 0.5)
    assert cfg.model.backbone.type == 'mmdet.SparseIFTResNet'
    assert len(cfg.custom_hooks) == 1
    cfg.model.backbone.inner = 'norm'
    sparsify(cfg, 'wide')  # Which has no inner layers.
    assert 'inner' not in cfg.model.backbone


def test_arguments_of_a_rule_keep_the_rule_of_the_config(mini):
    cfg = mini('mmpretrain')
    rule = dict(type='MEST', lambda_=0.3)
    nested = dict(structure='Block')
    for old, new in (('MEST', dict(type='MEST')), (rule, rule)):
        cfg.custom_hooks = [dict(type='SparseTrainingHook', algorithm=old)]
        sparsify(cfg, 'wide', 0.75, nested)
        assert cfg.custom_hooks[0].algorithm == new | nested


def test_an_algorithm_that_would_not_count_is_refused(mini):
    cfg = mini('mmpretrain')
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='a.pth')
    hook = dict(type='SparseTrainingHook', transfer='fixed')
    cfg.custom_hooks = [dict(type='EMAHook'), hook]
    with pytest.raises(ValueError, match='--hook transfer=train'):
        sparsify(cfg, 'parallel', 0.75, 'RigL')
    sparsify(cfg, 'parallel', 0.75, 'Static')  # What it is anyway.
    # Where nobody said that masks stay, they are trained on.
    for hook in ({}, dict(transfer='train')):
        cfg.custom_hooks = [dict(hook, type='SparseTrainingHook')]
        sparsify(cfg, algorithm='RigL')
        assert cfg.custom_hooks[0].transfer == 'train'
    cfg.custom_hooks = [dict(type='SparseTrainingHook', init='TopK')]
    sparsify(cfg, algorithm='SET')
    assert cfg.custom_hooks == [
        dict(type='SparseTrainingHook', init='TopK', algorithm='SET')
    ]


@pytest.mark.parametrize(
    'path, option, kept',
    [
        (
            'mmdet::retinanet/retinanet_x101-32x4d_fpn_1x_coco.py',
            'model.backbone.depth=50',
            dict(depth=50, frozen_stages=-1, norm_eval=False),
        ),
        (
            'mmdet::hrnet/faster-rcnn_hrnetv2p-w18-1x_coco.py',
            'load_from=None',
            # True by default, which a config need not say.
            dict(type='HRNet', norm_eval=False),
        ),
        (
            'mmpretrain::convnext/convnext-tiny_32xb128_in1k.py',
            'model.backbone.frozen_stages=2',
            dict(type='ConvNeXt', arch='tiny', frozen_stages=2),
        ),
    ],
)
def test_any_other_backbone_is_wrapped(path, option, kept):
    dense = read(path)
    cfg = read(path, *WIDE, '--inner', 'Norm-Act', '--cfg-options', option)
    wrapper = cfg.model.backbone
    assert {k: v for k, v in wrapper.items() if k != 'backbone'} == dict(
        type='SparseIFT', family='wide', sparsity=0.75, inner='norm_act'
    )
    inner = wrapper.backbone
    assert {key: inner.get(key) for key in kept} == kept
    assert inner.get('init_cfg') is None
    assert inner.type == dense.model.backbone.type
    for key in ('neck', 'head', 'bbox_head', 'rpn_head', 'decode_head'):
        assert cfg.model.get(key) == dense.model.get(key)
    assert cfg.optim_wrapper == dense.optim_wrapper
    assert type_name(cfg.custom_hooks[-1]) == 'SparseTrainingHook'


def test_a_wrapper_loads_weights_of_ones_own():
    path = 'mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py'
    pretrained = dict(type='Pretrained', checkpoint='mine.pth')
    cfg = read(path, *WIDE, '--pretrained', 'mine.pth')
    assert cfg.model.backbone.init_cfg == PRETRAINED
    cfg = read(path)
    cfg.model.backbone.init_cfg = pretrained
    sparsify(cfg, 'wide', 0.75)
    assert cfg.model.backbone.init_cfg == pretrained
    assert 'init_cfg' not in cfg.model.backbone.backbone
    # Another member of it, in one more call.
    sparsify(cfg, sparsity=0.6)
    assert cfg.model.backbone.sparsity == 0.6
    assert cfg.model.backbone.backbone.type == 'SwinTransformer'
    # As a baseline it stays what it is.
    cfg = read(path, '--pretrained', 'dense.pth')
    assert cfg.model.backbone.type == 'SwinTransformer'
    assert cfg.model.backbone.init_cfg.checkpoint == 'dense.pth'


def test_settings_of_the_member_hold(mini):
    cfg = mini(
        'mmdet', '--family', 'FACTORIZED', '--sparsity', '0.75',
        '--cfg-options', 'model.backbone.inner=norm_act',
        'model.backbone.sparse_factors=u', 'model.backbone.depth=34',
        'custom_hooks.0.interval=50', 'model.backbone.frozen_stages=1',
    )  # fmt: skip
    expected = dict(
        family='factorized', inner='norm_act', sparse_factors='u', depth=34,
        frozen_stages=1,
    )  # fmt: skip
    assert {k: cfg.model.backbone.get(k) for k in expected} == expected
    assert cfg.custom_hooks == [dict(type='SparseTrainingHook', interval=50)]
    # The width follows from what was set.
    cfg = mini(
        'mmdet', *WIDE[:2], '--cfg-options', 'model.backbone.depth=50',
        'model.backbone.sparsity=0.75', 'model.backbone.base_channels=16',
    )  # fmt: skip
    assert cfg.model.neck.in_channels == [128, 256, 512, 1024]


def test_direct_options_of_the_member(tmp_path):
    path = write_config(tmp_path, 'mmpretrain', tmp_path)
    argv = (
        '--family Factorized --sparsity .75 --inner NORM --sparse-factors U '
        '--algorithm rigl --interval 7 --hook drop_fraction=0.5 include=[a,b]'
    )
    cfg = load_run_config(parse_args([path, *argv.split()]))
    backbone = cfg.model.backbone
    assert (backbone.inner, backbone.sparse_factors) == ('norm', 'u')
    assert cfg.custom_hooks == [
        dict(
            type='SparseTrainingHook', algorithm='RigL', interval=7,
            drop_fraction=0.5, include=['a', 'b'],
        )
    ]  # fmt: skip
    assert cfg.work_dir == (
        './work_dirs/mmpretrain_mini_factorized-s75-norm-factors_u-rigl-'
        'drop_fraction_0.5-include__a_b_-i7'
    )


@pytest.mark.parametrize(
    'options, settings',
    [
        ('', 'model.neck.in_channels=[8,16,32,64]'),
        ('', 'model.backbone.family=parallel'),
        ('--interval 5', 'custom_hooks.0.interval=6'),
        ('--pretrained a.pth', 'load_from=b.pth'),
        ('--pretrained a.pth', 'model.backbone.init_cfg.checkpoint=b.pth'),
        ('', 'load_from=https://a/b.pth'),
    ],
)
def test_settings_have_the_last_word(options, settings, mini):
    argv = *WIDE, *options.split(), '--cfg-options', settings
    key, value = settings.split('=')
    node = mini('mmdet', *argv)
    for part in key.split('.'):
        node = node[int(part) if part.isdecimal() else part]
    assert str(node).replace(' ', '') == value
    if value == 'parallel':  # The widths follow.
        cfg = mini('mmdet', *argv)
        assert cfg.model.neck.in_channels == [8, 16, 32, 64]


@pytest.mark.parametrize(
    'argv, words',
    [
        (
            'WIDE --cfg-options custom_hooks.3.interval=6',
            'custom_hooks has 1 entries',
        ),
        (
            '--cfg-options custom_hooks.0.interval=6',
            'custom_hooks.0.interval=6: the config has no custom_hooks',
        ),
        (
            '--cfg-options model.backbone.depth.x=1',
            'model.backbone.depth is 18 and has no x',
        ),
        (
            '--cfg-options modle.backbone.depth=1',
            'the config has no modle: did you mean model?',
        ),
        ('--hook intervall=5', 'did you mean interval?'),
        ('--interval 5', 'family=None'),
        ('--sparsity 0.9', 'mmdet_mini.py: .*give both'),
    ],
)
def test_what_would_not_hold_is_said(argv, words, mini):
    with pytest.raises(UserError, match=words):
        mini('mmdet', *argv.replace('WIDE', ' '.join(WIDE)).split())


def test_a_config_of_a_library_is_read_in_its_scope():
    # It says none: the library's own tools know it.
    path = 'mmpretrain::dinov2/vit-small-p14_dinov2-pre_headless.py'
    file, _ = Config._get_cfg_path(path, '')
    assert 'default_scope' not in Config.fromfile(file)
    assert read(path).default_scope == 'mmpretrain'


def test_an_empty_name_of_a_checkpoint_is_named():
    with pytest.raises(UserError, match="checkpoint to load is ''"):
        check_checkpoint('')


@pytest.mark.parametrize(
    'rule', [['algorithm.type=RigL'], ['--algorithm', 'RigL']]
)
def test_a_structure_can_be_given_on_the_command_line(rule):
    structure = 'algorithm.structure.type=Block'
    args = parse_args(['a.py', '--hook', 'interval=3', structure, *rule])
    options = MemberOptions.of_args(args)
    written = dict(type='RigL', structure=dict(type='Block'))
    assert options.of_hook == dict(interval=3, algorithm=written)
