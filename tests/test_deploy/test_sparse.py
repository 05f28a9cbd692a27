"""Whole networks on sparse kernels against themselves executed densely."""

import copy
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
import torchvision
from blocks import make_block
from mmdet.registry import MODELS as DET
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS as PRE
from mmseg.registry import MODELS as SEG
from torch import Tensor, nn

from sift_mm.deploy import to_sparse

pytestmark = pytest.mark.usefixtures('seed')
WIDE = dict(type='SparseIFTResNet', base_channels=16, sparsity=0.75)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    'mmdet ResNet-50': lambda: DET.build(WIDE | dict(depth=50, family='wide')),
    'mmseg ResNet-18, dilated': lambda: SEG.build(
        WIDE
        | dict(depth=18, family='wide', strides=(1, 2, 1, 1))
        | dict(dilations=(1, 1, 2, 4))
    ),
    'Parallel': lambda: PRE.build(WIDE | dict(depth=18, family='parallel')),
    'Factorized': lambda: PRE.build(
        WIDE | dict(depth=18, family='factorized')
    ),
    'Doped': lambda: PRE.build(WIDE | dict(depth=18, family='doped')),
    'MobileNetV2': lambda: PRE.build(dict(type='MobileNetV2')),
    'Swin': lambda: PRE.build(
        dict(type='SwinTransformer', img_size=64, pad_small_map=True)
    ),
    'ResNeXt': lambda: PRE.build(dict(type='ResNeXt', depth=50)),
    'HRNet': lambda: PRE.build(dict(type='HRNet', arch='w18')),
    'DenseNet': lambda: PRE.build(dict(type='DenseNet', arch='121')),
    'torchvision VGG': lambda: torchvision.models.vgg11_bn(num_classes=7),
}


@torch.no_grad()
def sparsified(model: nn.Module, density: float = 0.1) -> nn.Module:
    """A network as training could leave it, with zeros."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.1)
    for weight in model.parameters():
        if weight.ndim in (2, 4) and min(weight.shape[:2]) > 1:
            weight *= torch.rand_like(weight) < density
    model.eval()  # OpenMMLab's backbones return nothing here.
    return model


def tensors(outputs: object) -> Iterator[Tensor]:
    if isinstance(outputs, (tuple, list)):
        for output in outputs:
            yield from tensors(output)
    else:
        yield outputs


def assert_equal(model: nn.Module, other: nn.Module, size: int = 64) -> None:
    x = torch.randn(2, 3, size, size + 32)
    with torch.inference_mode():
        pairs = zip(tensors(model(x)), tensors(other(x)), strict=True)
        for expected, found in pairs:
            scale = float(expected.abs().max())
            error = float((expected - found).abs().max())
            # Of sums that are reordered and norms that are multiplied in.
            assert error <= 2e-5 * scale, (error, scale)


@pytest.mark.parametrize('name', NETWORKS)
def test_outputs_are_those_of_the_dense_execution(name: str) -> None:
    model = sparsified(NETWORKS[name]())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    sparse = to_sparse(model)
    assert_equal(model, sparse)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    report = sparse.sparse_report
    assert len(report.sparse) >= 8
    if name == 'ResNeXt':
        assert report.dense['layer1.0.conv2'] == 'it has 32 groups'
    if name == 'Swin':
        assert 'control flow' in report.by_layer['']
        assert 'layer by layer' in str(report)
    else:
        assert any('norm' in how for how in report.sparse.values())


def test_a_resnets_norms_sums_and_relus_are_fused() -> None:
    model = sparsified(NETWORKS['mmdet ResNet-50']())
    sparse = to_sparse(model)
    report = sparse.sparse_report
    assert 'norm, ReLU' in report.sparse['layer1.0.conv1']
    assert 'norm, sum, ReLU' in report.sparse['layer1.0.conv3']
    assert report.sparse['layer1.0.downsample.0'].endswith('with norm')
    assert report.pools == ['maxpool']
    assert not report.by_layer
    kinds = {type(module) for module in sparse.modules()}
    assert nn.BatchNorm2d not in kinds and nn.MaxPool2d not in kinds


def test_a_convolution_of_images_runs_without_zeros_too() -> None:
    model = torchvision.models.resnet18()
    for weight in model.parameters():  # One of a million may be drawn so.
        weight.data[weight == 0] = 1e-3
    dense = copy.deepcopy(model).eval()
    sparsified(model).conv1.weight.data = dense.conv1.weight.data.clone()
    sparse = to_sparse(model)
    assert_equal(model, sparse)
    how = sparse.sparse_report.sparse['conv1']
    assert how == 'density 1.000, with norm, ReLU'
    # Alone it is no reason to have a sparse network.
    with pytest.raises(ValueError, match='have no zeros'):
        to_sparse(dense)
    wide = nn.Conv2d(3, 8, 9), nn.Conv2d(8, 8, 3)
    wide[1].weight.data *= torch.rand(8, 8, 3, 3) < 0.2
    report = to_sparse(nn.Sequential(*wide).eval()).sparse_report
    assert list(report.sparse) == ['1'] and not report.dense


def test_copies_and_pickles_run_alike() -> None:
    sparse = to_sparse(sparsified(torchvision.models.resnet18()))
    for other in (
        copy.deepcopy(sparse),
        pickle.loads(pickle.dumps(sparse)),
    ):
        assert_equal(sparse, other)
    # What a copy does, the original does not see.
    other.conv1.values.zero_()
    assert sparse.conv1.values.any()


def test_masks_say_what_is_kept() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU()).eval()
    weight = model[0].weight.data
    mask = torch.rand_like(weight) < 0.3
    weight *= mask
    weight.view(-1)[mask.view(-1).nonzero()[0]] = 0  # active, and zero
    sparse = to_sparse(model, {'0.weight': mask})
    assert sparse[0].values.numel() == int(mask.sum())
    x = torch.randn(1, 8, 9, 9)
    torch.testing.assert_close(sparse(x), model(x))


@pytest.mark.parametrize('shape', [(5, 16), (2, 3, 16), (16,)])
def test_a_linear_layer_takes_any_leading_shape(shape: tuple) -> None:
    model = nn.Sequential(nn.Linear(16, 12)).eval()
    model[0].weight.data *= torch.rand(12, 16) < 0.2
    x = torch.randn(shape)
    torch.testing.assert_close(to_sparse(model)(x), model(x))


def shared(self, x: Tensor) -> Tensor:
    """One convolution at two places, the second behind no norm."""
    return self.conv(self.norm(self.conv(x)))


def read(self, x: Tensor) -> Tensor:
    """The convolution's output is read beside the norm's."""
    y = self.conv(x)
    return self.norm(y).relu() + y


def spread(self, x: Tensor) -> Tensor:
    """The sums are with tensors of other shapes."""
    mean = x.mean((2, 3), keepdim=True)
    return (self.conv(x) + mean).relu() + self.pointwise(mean)


def view(self, x: Tensor) -> Tensor:
    """The sum's order is the other one, and it is in place."""
    y = x * 2
    y += self.conv(x)
    return y


@pytest.mark.parametrize('run', [shared, read, spread, view])
def test_what_must_not_be_fused_is_not(run: Callable) -> None:
    layers = dict(
        conv=nn.Conv2d(3, 3, 3, padding=1), pointwise=nn.Conv2d(3, 3, 1)
    )
    norm = nn.BatchNorm2d(3)
    model = make_block(run.__name__, run, BaseModule, **layers, norm=norm)
    assert_equal(sparsified(model, 0.4), to_sparse(model), 12)


def test_a_hook_still_sees_its_layer() -> None:
    model = sparsified(torchvision.models.resnet18())
    seen: list[Tensor] = []
    model.layer1.register_forward_hook(lambda *args: seen.append(args[2]))
    sparse = to_sparse(model)
    assert_equal(model, sparse)
    assert len(seen) == 2
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ('masks', 'words'),
    [
        (None, 'in training mode'),
        ({}, 'have no zeros'),
        ({'1.weight': torch.ones(1)}, "'1.weight', which the model lacks"),
        ({'0.weight': torch.ones(3, 3)}, 'has shape'),
    ],
)
def test_refusals(masks: dict | None, words: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3)).train(masks is None)
    with pytest.raises(ValueError, match=words):
        to_sparse(model, masks)


def test_dense_enough_layers_are_named() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)).eval()
    model[0].weight.data *= torch.rand(8, 8, 3, 3) < 0.8
    model[1].weight.data *= torch.rand(8, 8, 3, 3) < 0.2
    report = to_sparse(model).sparse_report
    assert 'gains nothing' in report.dense['0']
    assert list(report.sparse) == ['1']
