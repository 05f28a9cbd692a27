"""Necks and heads of the libraries' own configs read wider features."""

import copy

import pytest
from mmengine.config import Config

from helpers.runs import write_config
from sift_mm.config import channels, sparsify
from sift_mm.config.building import build
from sift_mm.config.channels import (
    check_channels,
    fit_channels,
    reader_channels,
)
from sift_mm.config.dense import make_dense
from sift_mm.config.libraries import import_library
from sift_mm.config.loading import read_config
from sift_mm.config.nodes import set_at, walk
from sift_mm.engine.budget import whole_model_budget
from sift_mm.errors import UserError
from sift_mm.flops import count_model

STAGES = [256, 512, 1024, 2048]
DETR = '300 queries, as num_queries'


def read(name):
    cfg = read_config(name)
    import_library(cfg)
    return cfg


def numbers(cfg):
    return [*reader_channels(cfg.model).values()]


def narrow(cfg):
    """Divide the widths by eight and replace bottlenecks by basic blocks."""
    backbone = cfg.model.backbone
    backbone.update(depth=18, base_channels=8)
    if 'stem_channels' in backbone or cfg.default_scope == 'mmseg':
        backbone.stem_channels = 8
    for key, number in reader_channels(cfg.model).items():
        set_at(cfg.model, key, number // (4 * 8))
    for _, node in walk(cfg.model, 'model'):  # Transformers of six layers.
        if isinstance(node, dict) and 'num_layers' in node:
            node['num_layers'] = 1


@pytest.mark.parametrize(
    'name, dense, assumed',
    [
        (
            'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
            [512, 1024, 2048],
            DETR,
        ),
        (
            'mmseg::mask2former/mask2former_r50_8xb2-90k_cityscapes-'
            '512x1024.py',
            STAGES,
            '100 queries',
        ),
        (
            'mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py',
            [2048, 1024],
            '',
        ),
        (
            'mmseg::point_rend/pointrend_r50_4xb2-80k_cityscapes-512x1024.py',
            STAGES,
            '8196 points in each of 2 subdivisions',
        ),
    ],
)
def test_configs_of_the_libraries(name, dense, assumed):
    cfg = read(name)
    assert numbers(cfg) == dense
    narrow(cfg)
    small = numbers(cfg)
    # It refuses what does not fit, by a trial run.
    sparsify(cfg, 'wide', 0.75)
    assert numbers(cfg) == [2 * n for n in small]
    before = cfg.model.to_dict()
    fit_channels(cfg)  # It fits already.
    assert cfg.model.to_dict() == before
    assert numbers(make_dense(cfg)[0]) == small
    assert cfg.model.to_dict() == before
    _, said = count_model(build(cfg), (128, 128))
    assert ' '.join(said).startswith(assumed)
    assert bool(said) == bool(assumed)


def test_a_head_that_reads_itself():
    cfg = read(
        'mmseg::knet/knet-s3_r50-d8_fcn_8xb2-adamw-80k_ade20k-512x512.py'
    )
    cfg.model.backbone.update(depth=18, base_channels=8, stem_channels=8)
    head = cfg.model.decode_head
    head.kernel_generate_head.update(in_channels=64, channels=16)
    for update in head.kernel_update_head:
        # Of the 16 channels that the other head gives.
        update.update(in_channels=16, out_channels=16, feedforward_channels=8)
        update.kernel_updator_cfg.update(
            in_channels=8, feat_channels=8, out_channels=8
        )
    cfg.model.auxiliary_head.in_channels = 32
    dense = copy.deepcopy(cfg.model.decode_head)
    sparsify(cfg, 'wide', 0.75)
    assert cfg.model.auxiliary_head.in_channels == 64
    head = copy.deepcopy(cfg.model.decode_head)
    assert head.kernel_generate_head.in_channels == 128
    back = make_dense(cfg)[0].model
    assert back.decode_head == dense
    assert back.auxiliary_head.in_channels == 32
    head.kernel_generate_head.in_channels = 64
    assert head == dense  # Nothing else was changed.


def test_a_neck_that_passes_features_on():
    cfg = read(
        'mmseg::fastfcn/fastfcn_r50-d32_jpu_psp_4xb4-80k_ade20k-512x512.py'
    )
    narrow(cfg)
    cfg.model.auxiliary_head.in_channels = 32
    sparsify(cfg, 'wide', 0.75)
    # It insists on a tuple.
    assert cfg.model.neck.in_channels == (32, 64, 128)
    assert cfg.model.auxiliary_head.in_channels == 64
    dense = make_dense(cfg)[0].model
    assert dense.neck.in_channels == (16, 32, 64)
    assert dense.auxiliary_head.in_channels == 32
    cfg.model.neck.in_channels = (16, 32, 64)
    with pytest.raises(
        UserError, match=r'write model\.neck\.in_channels=\(32, 64, 128\)'
    ):
        check_channels(build(cfg), cfg)


def test_a_layer_that_cannot_follow():
    name = 'mmdet::faster_rcnn/faster-rcnn_r50-caffe-c4_ms-1x_coco.py'
    cfg = read(name)
    with pytest.raises(
        ValueError,
        match=r'model\.roi_head\.shared_head\.layer4\.0\.conv1 reads 1024 '
        r'channels and gets 2048: .*gives \[2048\].* cannot follow',
    ):
        sparsify(cfg, 'wide', 0.75)
    sparsify(read(name), 'parallel', 0.75)  # Its features are no wider.


def test_a_head_that_reads_channels_and_places_together():
    # Of images of 256 x 128 pixels, and of no others.
    cfg = read('mmdet::reid/reid_r50_8xb32-6e_mot17train80_test-mot17val20.py')
    narrow(cfg)
    cfg.model.backbone.stem_channels = 8
    sparsify(cfg, 'wide', 0.75)
    assert cfg.model.head.in_channels == 128
    # Without pipelines sizes are not known.
    check_channels(build(cfg), Config(dict(model=cfg.model)))
    cfg.model.head.in_channels = 64
    with pytest.raises(UserError, match='write model.head.in_channels=128'):
        check_channels(build(cfg), cfg)


def test_layers_that_do_not_agree_on_a_number_are_named(tmp_path, monkeypatch):
    cfg = read(write_config(tmp_path, 'mmdet', tmp_path))

    def contrary(model, cfg):
        reads = cfg.model.neck.in_channels[1]
        return 'neck.lateral_convs.0.conv', reads, 48 - reads

    monkeypatch.setattr(channels, 'find_misfit', contrary)
    with pytest.raises(UserError, match='reads 16 channels and gets 32'):
        sparsify(cfg, 'wide', 0.75)


@pytest.mark.parametrize('sparsity, width', [(0.9, 25), (0.5, 11)])
def test_another_sparsity_of_a_wide_config(tmp_path, sparsity, width):
    cfg = read(write_config(tmp_path, 'mmdet', tmp_path))
    sparsify(cfg, 'wide', 0.75)
    sparsify(cfg, sparsity=sparsity)
    assert cfg.model.neck.in_channels == [width * 2**i for i in range(4)]
    sparsify(cfg, 'parallel', 0.75)
    assert cfg.model.neck.in_channels == [8, 16, 32, 64]


def test_only_what_reads_the_backbone_follows():
    model = dict(
        backbone=dict(in_channels=32),
        neck=[dict(type='Pool'), dict(in_channels=(16, 32)), dict(channels=8)],
        bbox_head=dict(in_channels=16),
    )
    keys = ['neck.1.in_channels.0', 'neck.1.in_channels.1']
    assert [*reader_channels(model)] == keys
    del model['neck'][1]
    model['mask_head'] = [dict(a=dict(c1_in_channels=8, out_channels=16))]
    keys = ['bbox_head.in_channels', 'mask_head.0.a.c1_in_channels']
    assert [*reader_channels(model)] == keys


@pytest.mark.parametrize(
    'scope, key, value, words',
    [
        (
            'mmdet',
            'neck.in_channels',
            [8, 16, 32, 64],
            r'write model\.neck\.in_channels=\[16, 32, 64, 128\]\.',
        ),
        (
            'mmseg',
            'auxiliary_head.in_channels',
            32,
            r'gets 64: .*write model\.auxiliary_head\.in_channels=64\.',
        ),
        (
            'mmpretrain',
            'head.in_channels',
            64,
            r'model\.head\.fc reads 64 .*write model\.head\.in_channels=128\.',
        ),
    ],
)
def test_the_key_that_fits_is_named(tmp_path, scope, key, value, words):
    cfg = read(write_config(tmp_path, scope, tmp_path))
    sparsify(cfg, 'wide', 0.75)
    model = build(cfg)
    check_channels(model, cfg)
    cfg.merge_from_dict({f'model.{key}': value})
    with pytest.raises(ValueError, match=words) as error:
        check_channels(build(cfg), cfg)
    assert '\n' not in str(error.value)


def test_the_whole_model_and_its_dense_one(tmp_path):
    cfg = read(write_config(tmp_path, 'mmdet', tmp_path))
    small, _ = count_model(build(cfg), (128, 128))
    sparsify(cfg, 'wide', 0.75)
    whole = whole_model_budget(cfg, build(cfg))
    assert whole.dense == small.total
    assert whole.ratio({}) == whole.own.total / small.total > 1


def test_the_dense_one_of_any_backbone(tmp_path):
    cfg = read(write_config(tmp_path, 'mmdet', tmp_path))
    assert make_dense(cfg)[0].model.to_dict() == cfg.model.to_dict()
    inner = cfg.model.backbone.to_dict()
    wrapped = dict(type='SparseIFT', backbone=inner, family='wide')
    other = Config(dict(cfg.to_dict(), default_scope='mmdet'))
    other.model.backbone = dict(wrapped, sparsity=0.75)
    assert make_dense(other)[0].model.to_dict() == cfg.model.to_dict()
    assert str(make_dense(other)[1]) == str(make_dense(cfg)[1])
