"""Networks of the libraries on sparse kernels against dense execution."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
import torchvision
from mmdet.registry import MODELS as DET
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS as PRE
from mmseg.registry import MODELS as SEG
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from helpers.networks import assert_equal, make_block, sparsified, tensors
from sift_mm.deploy import to_sparse

pytestmark = pytest.mark.usefixtures('seed')
WIDE = dict(type='SparseIFTResNet', base_channels=8, sparsity=0.75)
MM: dict[str, Callable] = {
    'mmdet ResNet-50': partial(
        DET.build, WIDE | dict(depth=50, family='wide')
    ),
    'mmseg ResNet-18, dilated': partial(
        SEG.build,
        WIDE
        | dict(depth=18, family='wide', strides=(1, 2, 1, 1))
        | dict(dilations=(1, 1, 2, 4)),
    ),
    **{
        f'mmpretrain {family}': partial(
            PRE.build, WIDE | dict(depth=18, family=family)
        )
        for family in ('parallel', 'factorized', 'doped')
    },
    'mmpretrain MobileNetV2': partial(
        PRE.build, dict(type='MobileNetV2', widen_factor=0.25)
    ),
    'mmpretrain ResNeXt': partial(
        PRE.build,
        dict(type='ResNeXt', depth=50, groups=2, width_per_group=4)
        | dict(base_channels=8, stem_channels=8),
    ),
    'mmpretrain Res2Net': partial(
        PRE.build,
        dict(type='Res2Net', depth=50, scales=4, base_width=4)
        | dict(base_channels=16, stem_channels=16),
    ),
}
TORCHVISION = (
    *('squeezenet1_1', 'shufflenet_v2_x0_5', 'mobilenet_v3_small'),
    *('regnet_y_400mf', 'resnet18', 'densenet121'),
)
TIMM = (
    *('test_byobnet', 'test_efficientnet', 'test_resnet', 'test_vit'),
    *('resnet10t', 'ghostnet_050', 'skresnet18'),
)
NETWORKS = (
    MM
    | {n: partial(torchvision.models.get_model, n) for n in TORCHVISION}
    | {n: partial(timm.create_model, n) for n in TIMM}
)


@pytest.mark.parametrize('name', NETWORKS)
@torch.inference_mode()
def test_outputs_are_those_of_the_dense_execution(name: str) -> None:
    model = sparsified(NETWORKS[name](), 0.2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    sparse: Any = to_sparse(model, execution='sparse')
    size = getattr(model, 'default_cfg', {}).get('input_size', (3, 64, 96))
    assert_equal(model, sparse, torch.randn(1, *size))
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert len(sparse.sparse_report.sparse) >= 8


@torch.no_grad()
def test_what_follows_the_layers_of_a_resnet_is_fused() -> None:
    networks = torchvision.models.resnet18(), timm.create_model('resnet18')
    for model in networks:
        sparse: Any = to_sparse(sparsified(model), execution='sparse')
        fused = sparse.sparse_report.fused
        assert fused['conv1'] == fused['layer1.0.conv1'] == 'norm, ReLU'
        assert fused['layer1.0.conv2'] == 'norm, sum, ReLU'
        assert fused['layer2.0.downsample.0'] == 'norm'
        assert sparse.sparse_report.pools == ['maxpool']
    mm: Any = to_sparse(sparsified(MM['mmdet ResNet-50']()))
    fused = mm.sparse_report.fused
    assert fused['layer1.0.conv1'] == fused['conv1'] == 'norm, ReLU'
    assert fused['layer1.1.conv3'] == 'norm, sum'


@torch.no_grad()
def test_a_convolution_of_images_runs_without_zeros_too() -> None:
    model = torchvision.models.resnet18(num_classes=3).eval()
    for weight in model.parameters():  # One of a million may be drawn so.
        weight[weight == 0] = 1e-3
    # Alone it is no reason to have a sparse network.
    with pytest.raises(ValueError, match='have no zeros'):
        to_sparse(model)
    model.layer1[0].conv1.weight[:, 8:] = 0
    sparse: Any = to_sparse(model, execution='sparse')
    how = sparse.sparse_report.sparse
    assert how['conv1'] == 'density 1.000, with norm, ReLU'
    assert list(how) == ['conv1', 'layer1.0.conv1']
    assert_equal(model, sparse, torch.randn(1, 3, 32, 32))


@torch.no_grad()
def test_a_head_that_takes_a_tuple() -> None:
    init_default_scope('mmseg')
    head = dict(type='FCNHead', in_channels=4, channels=8, num_classes=3)
    built = SEG.build(head | dict(norm_cfg=dict(type='BN'), in_index=1))
    model = sparsified(
        make_block('Neck', lambda self, x: self.head((x, x)), head=built), 0.4
    )
    key = 'head.convs.0.conv'
    weight = model.get_parameter(f'{key}.weight')
    sparse: Any = to_sparse(model, {f'{key}.weight': weight != 0}, 'sparse')
    assert_equal(model, sparse)
    assert key in sparse.sparse_report.sparse


@torch.no_grad()
def test_a_detector_without_proposals() -> None:
    backbone: Any = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
    backbone.out_channels = 8
    model = FasterRCNN(
        backbone,
        num_classes=3,
        rpn_anchor_generator=AnchorGenerator(((16,),), ((1.0,),)),
        box_roi_pool=MultiScaleRoIAlign(['0'], 2, 1),
        rpn_score_thresh=2.0,  # Nothing is as likely.
        min_size=32,
        max_size=32,
    )
    sparse: Any = to_sparse(sparsified(model, 0.3), execution='sparse')
    assert 'roi_heads.box_head.fc6' in sparse.sparse_report.sparse
    (found,) = sparse([torch.rand(3, 32, 32)])
    assert found['boxes'].shape == (0, 4)
    assert tensors(found)


@torch.no_grad()
def test_an_owner_that_reads_weights_keeps_them_dense() -> None:
    block = torchvision.models.swin_transformer.SwinTransformerBlock
    model = sparsified(block(8, 2, [4, 4], [2, 2]), 0.3)
    sparse: Any = to_sparse(model, execution='sparse')
    assert_equal(model, sparse, torch.randn(1, 8, 8, 8))
    dense = {n for n, why in sparse.sparse_report.dense.items()}
    assert dense == {'attn.qkv', 'attn.proj'}
    assert_equal(model, sparse, torch.randn(1, 8, 8, 8))
