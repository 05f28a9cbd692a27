"""Networks of the libraries on sparse kernels against dense execution."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
import torchvision
from mmdet.registry import MODELS as DET
from mmpretrain.registry import MODELS as PRE
from mmseg.registry import MODELS as SEG

from helpers.networks import assert_equal, sparsified
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
