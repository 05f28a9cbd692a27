"""Folding batch norms into the layers before them."""

import pytest
import torch
from mmcv.cnn import ConvModule
from mmcv.cnn.bricks import wrappers
from torch import nn
from torch.nn.utils import parametrizations

from helpers.folding import (
    SIZES,
    assert_all_that_remains_is_named,
    assert_folds_to_the_same,
    no_statistics,
    trained,
)
from helpers.networks import make_block
from sift_mm.deploy import fold
from sift_mm.layers import Doped
from sift_mm.layers.wide import WideConv2d

pytestmark = pytest.mark.usefixtures('seed')


@pytest.mark.parametrize(
    'layer, norm',
    [
        (nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6)),
        (nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)),
        (nn.Conv2d(4, 6, 3), nn.SyncBatchNorm(6)),
        (nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4, affine=False)),
        (nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.BatchNorm2d(6, eps=0.1)),
        (nn.Conv3d(4, 6, 3), nn.BatchNorm3d(6)),
        (nn.Linear(4, 6), nn.BatchNorm1d(6)),
        (nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6, affine=False)),
    ],
)
def test_norms_behind_layers(layer, norm):
    model = trained(nn.Sequential(layer, nn.Identity(), norm, nn.ReLU()))
    x = torch.randn(3, 4, *SIZES[type(layer)])
    assert assert_folds_to_the_same(model, x).norms == ['2']
    assert type(model[0]) is type(layer) and type(model[2]) is nn.Identity


@pytest.mark.parametrize('norms', [True, False])
def test_a_norm_behind_a_composite(norms):
    doped = Doped(nn.Conv2d(4, 6, 3, padding=1), 2)
    model = trained(nn.Sequential(doped, nn.BatchNorm2d(6)))
    x = torch.randn(2, 4, 5, 5)
    report = assert_folds_to_the_same(model, x, norms=norms)
    assert report.norms == ['1'] * norms and list(report.folded) == ['0']
    assert type(model[1]) is (nn.Identity if norms else nn.BatchNorm2d)
    assert not report.kept


@pytest.mark.parametrize('kind', [wrappers.Conv2d, WideConv2d])
def test_layers_that_work_as_plain_ones_keep_their_kind(kind):
    model = trained(nn.Sequential(kind(4, 6, 3), nn.BatchNorm2d(6)))
    assert assert_folds_to_the_same(model, torch.randn(2, 4, 5, 5)).norms
    assert type(model[0]) is kind


class Activated(nn.BatchNorm2d):
    """As timm's norms."""

    def forward(self, x):
        return super().forward(x).relu()


def hooked(module):
    module.register_forward_hook(lambda m, args, out: out + 1)
    return module


def patched(module):
    module.forward = lambda x: x + 1
    return module


class Ordered(nn.Sequential):
    """A sequence that is not run as one."""

    def forward(self, x):
        return super().forward(x)


def convolution():
    return nn.Conv2d(4, 4, 3)


@pytest.mark.parametrize(
    'changes, reason',
    [
        (dict(between=nn.ReLU()), 'ReLU'),  # mmcv fuses this one, wrongly.
        (dict(between=nn.Dropout()), 'Dropout'),
        (dict(between=nn.GroupNorm(1, 4)), 'GroupNorm'),
        (dict(layer=nn.ConvTranspose2d(4, 4, 3)), 'ConvTranspose2d'),
        (dict(layer=nn.Identity()), 'the first in its Sequential'),
        (dict(norm=no_statistics(4)), 'no running statistics'),
        (dict(norm=Activated(4)), 'Activated has a forward method'),
        (dict(layer=hooked(convolution())), 'the layer before it has hooks'),
        (dict(norm=hooked(nn.BatchNorm2d(4))), 'it has hooks'),
        (dict(norm=patched(nn.BatchNorm2d(4))), 'it has hooks'),
        (
            dict(layer=parametrizations.weight_norm(convolution())),
            'Parametrized',
        ),
        (dict(layer=nn.utils.spectral_norm(convolution())), 'has hooks'),
    ],
)
def test_norms_that_are_kept(changes, reason):
    parts = dict(
        layer=convolution(), between=nn.Identity(), norm=nn.BatchNorm2d(4)
    )
    model = nn.Sequential(*(parts | changes).values())
    report = assert_folds_to_the_same(trained(model), torch.randn(2, 4, 7, 7))
    assert not report.norms and report.kept.keys() == {'2'}
    assert reason in report.kept['2']


@pytest.mark.parametrize(
    'model, reason',
    [
        (
            nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(4)),
            'of 4 channels',
        ),
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm2d(4)), 'does not fit'),
        (nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm1d(4)), 'does not fit'),
        (nn.ModuleList([nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)]), 'ModuleList'),
        (
            nn.ModuleDict(dict(a=nn.Conv2d(4, 4, 3), b=nn.BatchNorm2d(4))),
            'ModuleDict',
        ),
    ],
)
def test_siblings_that_cannot_be_a_pair(model, reason):
    report = fold(model.eval())
    assert not report.norms
    assert reason in next(iter(report.kept.values()))


def test_norms_in_a_row_are_clear_in_a_sequential_only():
    def parts():
        return nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    model = trained(nn.Sequential(*parts()))
    report = assert_folds_to_the_same(model, torch.randn(2, 4, 5, 5))
    assert report.norms == ['1', '2']
    report = fold(trained(Ordered(*parts())))
    assert not report.norms and report.kept.keys() == {'1', '2'}
    assert 'take turns' in report.kept['1']


def test_a_convolution_with_a_norm_for_each_level_is_kept():
    # As heads have them that share convolutions over levels.
    levels = nn.ModuleList(
        ConvModule(4, 4, 3, padding=1, norm_cfg=dict(type='BN'))
        for _ in range(2)
    )
    levels[1].conv = levels[0].conv
    model = make_block(
        'Heads',
        lambda self, x: torch.cat([level(x) for level in self.levels]),
        levels=levels,
    )
    report = assert_folds_to_the_same(trained(model), torch.randn(2, 4, 5, 5))
    assert not report.norms
    assert report.kept.keys() == {'levels.0.bn', 'levels.1.bn'}
    assert '2 places' in report.kept['levels.0.bn']
    assert_all_that_remains_is_named(model, report)


def test_what_is_shared_is_folded_as_a_whole_alone():
    x, norm = torch.randn(2, 4, 7, 7), nn.BatchNorm2d(4)
    layers = convolution(), norm, convolution(), norm
    model = trained(nn.Sequential(*layers))
    assert assert_folds_to_the_same(model, x).kept.keys() == {'1', '3'}
    block = nn.Sequential(convolution(), nn.BatchNorm2d(4))
    model = trained(nn.Sequential(block, nn.ReLU(), block))
    assert assert_folds_to_the_same(model, x).norms == ['0.1']


@pytest.mark.parametrize(
    'options, reason',
    [
        (dict(order=('conv', 'norm', 'act')), None),
        (dict(order=('act', 'conv', 'norm')), None),
        (dict(order=('norm', 'act', 'conv')), "('norm', 'act', 'conv')"),
        (dict(order=('conv', 'act', 'norm')), "('conv', 'act', 'norm')"),
        (dict(order=('norm', 'conv', 'act')), "('norm', 'conv', 'act')"),
        (dict(efficient_conv_bn_eval=True), 'itself in each forward pass'),
    ],
)
def test_conv_modules_of_any_order(options, reason):
    layer = ConvModule(4, 4, 3, norm_cfg=dict(type='BN'), **options)
    model = trained(nn.Sequential(layer))
    report = assert_folds_to_the_same(model, torch.randn(2, 4, 5, 5))
    assert report.norms == ([] if reason else ['0.bn'])
    assert reason is None or reason in report.kept['0.bn']
