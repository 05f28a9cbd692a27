"""get_flops on models with several heads, unusual images, or mistakes."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from helpers.sparse_runs import sparse_config
from sift_mm.cli import get_flops

NOWHERE = Path('nowhere')


def message(*argv):
    with pytest.raises(SystemExit) as stop:
        get_flops.main(argv)
    assert stop.value.code == 2
    assert '\n' not in str(stop.value)
    return str(stop.value)


TWO_HEADS = """
model['auxiliary_head'] = 2 * [dict(
    type='FCNHead', in_channels=64, in_index=2, channels=8, num_convs=1,
    concat_input=False, num_classes=19, norm_cfg=dict(type='BN'))]
"""


@pytest.mark.parametrize('more, heads', [('', 1), (TWO_HEADS, 2)])
def test_auxiliary_heads_train(more, heads, tmp_path, report):
    found = report(sparse_config(tmp_path, 'mmseg', NOWHERE, more))
    # A 3 x 3 convolution from 32 to 8 channels and a 1 x 1 one to 19
    # classes, at an eighth of 64 pixels.
    head = 2 * (9 * 32 * 8 + 8 * 19) * 8**2
    dense = found['comparison']['total']['flops_of_dense']
    methods = found['training']['flops_per_sample']
    assert methods['dense'] == 3 * (dense + heads * head)
    # Twice the channels to read.
    wider = 2 * (9 * 64 * 8 + 8 * 19) * 8**2
    sparse = found['total']['flops_sparse']
    assert methods['Static'] == pytest.approx(3 * (sparse + heads * wider))
    # Two iterations of 16, the batch of auto_scale_lr.
    assert found['training']['samples'] == 32


def test_one_of_several_heads_that_does_not_fit(tmp_path):
    config = sparse_config(tmp_path, 'mmseg', NOWHERE, TWO_HEADS)
    assert 'write model.auxiliary_head.1.in_channels=64.' in message(
        config, '--cfg-options', 'model.auxiliary_head.1.in_channels=32'
    )


def test_what_is_assumed_of_the_image_is_said(tmp_path, report, capsys):
    cfg = Config.fromfile(sparse_config(tmp_path, 'mmdet', NOWHERE, TWO_STAGE))
    del cfg.model['bbox_head']  # Of the one stage that it is made from.
    config = str(tmp_path / 'two_stages.py')
    cfg.dump(config)
    found = report(config)
    assert found['assumed'] == [
        '7 proposals, as test_cfg.rpn.max_per_img',
        'masks of 5 objects, as test_cfg.rcnn.max_per_img',
    ]
    rows = {row['name']: row for row in found['layers']}
    # Seven regions of 7 x 7 pixels with 16 channels; five of 14 x 14.
    head = 2 * 7 * (16 * 49) * 32
    assert rows['roi_head.bbox_head.shared_fcs.0']['flops_dense'] == head
    mask = 2 * 5 * 14**2 * 9 * 16 * 8
    assert rows['roi_head.mask_head.convs.0.conv']['flops_dense'] == mask
    assert found['comparison']['parts'][-1]['name'] == 'roi_head'
    get_flops.main([config])
    assert 'Counted with 7 proposals, as' in ' '.join(
        capsys.readouterr().out.split()
    )


TWO_STAGE = """
_roi = dict(type='SingleRoIExtractor', out_channels=16,
            featmap_strides=[4, 8, 16, 32])
model.update(
    type='MaskRCNN',
    rpn_head=dict(
        type='RPNHead', in_channels=16, feat_channels=16,
        anchor_generator=dict(type='AnchorGenerator', scales=[8],
                              ratios=[1.0], strides=[4, 8, 16, 32, 64]),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder')),
    roi_head=dict(
        type='StandardRoIHead',
        bbox_roi_extractor=dict(
            _roi, roi_layer=dict(type='RoIAlign', output_size=7)),
        bbox_head=dict(
            type='Shared2FCBBoxHead', in_channels=16, fc_out_channels=32,
            roi_feat_size=7, num_classes=3),
        mask_roi_extractor=dict(
            _roi, roi_layer=dict(type='RoIAlign', output_size=14)),
        mask_head=dict(type='FCNMaskHead', num_convs=1, in_channels=16,
                       conv_out_channels=8, num_classes=3)),
    train_cfg=None,
    test_cfg=dict(_delete_=True, rpn=dict(max_per_img=7),
                  rcnn=dict(max_per_img=5)))
model['neck'].update(start_level=0, add_extra_convs=False)
"""


@pytest.mark.parametrize(
    'name, text, words',
    [
        ('nope.py', None, '^There is no config file nope.py.$'),
        ('mmdet::retinanet/nope.py', None, '^There is no config file mmdet::'),
        # A folder of MMDetection's is called so.
        ('mmdet::gn+ws/a.py', None, 'a.py is no name that MMEngine reads'),
        (
            'c.py',
            "_base_ = './nope.py'",
            'c.py: a file of its _base_ is missing: .*nope.py',
        ),
        (
            'c.py',
            "custom_imports = dict(imports=['no_such_package'])",
            "^c.py: custom_imports: .*No module named 'no_such_package'",
        ),
        ('c.py', 'a = 1', r'^c.py: the config has no model\.$'),
        (
            'c.py',
            'train_cfg = dict(val_interval=0)',
            'train_cfg.val_interval has to be a whole number above zero, not',
        ),
        (
            'c.py',
            "default_hooks = dict(checkpoint=dict(interval='x'))",
            'default_hooks.checkpoint.interval has to be a whole number, not',
        ),
    ],
)
def test_a_config_that_cannot_be_read(name, text, words):
    if text is not None:
        Path(name).write_text(text)
    assert re.search(words, message(name))


def test_a_model_whose_teacher_is_not_there():
    # A library's config names its teacher by a path in a checkout.
    name = 'mmdet::ld/ld_r18-gflv1-r101_fpn_1x_coco.py'
    found = message(name, '--cfg-options', 'model.teacher_config=here/nope.py')
    assert found.startswith(
        f'{name}: model: KnowledgeDistillationSingleStageDetector cannot be '
    )
    assert 'here/nope.py' in found


VAN = """
model['backbone'] = dict(
    _delete_=True, type='VAN', in_channels=1, drop_path_rate=0.0,
    arch=dict(embed_dims=[8, 8, 8, 8], depths=[1, 1, 1, 1],
              ffn_ratios=[2, 2, 2, 2]))
model['head']['in_channels'] = 8
"""


@pytest.fixture
def not_a_number():
    """Fill memory that nobody has written yet with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures('not_a_number')
@pytest.mark.parametrize('wrapped', [False, True])
def test_images_of_one_channel(wrapped, report, dense):
    # MobileNetV2 has no such argument, VAN has.
    config = dense('mmpretrain', VAN)
    options = ('--family', 'wide', '--sparsity', '0.75') if wrapped else ()
    found = report(config, *options)
    # The first layer, 7x7 at stride 4, by hand: 8 x 8 places of 8 channels.
    rows = {row['name']: row['flops_dense'] for row in found['layers']}
    assert rows['backbone.patch_embed1.projection'] == 2 * 8**3 * 7 * 7


def test_a_config_without_a_size(dense):
    config = dense('mmpretrain', 'del pipeline[1]\n')
    assert message(config).endswith('give it by --shape H W.')


MIXER = """
model['backbone'] = dict(
    _delete_=True, type='MlpMixer', img_size=32, patch_size=16,
    arch=dict(embed_dims=8, num_layers=1, tokens_mlp_dims=8,
              channels_mlp_dims=8))
model['neck'] = dict(dim=1)
model['head']['in_channels'] = 8
"""


def test_a_shape_that_the_model_does_not_take(dense):
    config = dense('mmpretrain', MIXER)
    assert (
        'the model does not run in tensor mode on an image of 64 x 96 pixels '
        "alone (AssertionError: The MLP-Mixer doesn't support dynamic input"
    ) in message(config, '--shape', '64', '96')
    get_flops.main([config])
