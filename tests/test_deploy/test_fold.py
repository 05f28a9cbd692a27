import copy
import re

import pytest
import torch
from mmcv.cnn import ConvModule
from mmcv.cnn.bricks import wrappers
from torch import nn
from torch.nn.utils import parametrizations

from helpers.networks import make_block
from sift_mm.deploy import FoldReport, fold
from sift_mm.layers import Composite, Doped, Factorized, Parallel
from sift_mm.layers.wide import WideConv2d

pytestmark = pytest.mark.usefixtures('seed')
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
MAKE = {
    'parallel': lambda layer, **kw: Parallel(layer, 3, **kw),
    'factorized': lambda layer, **kw: Factorized(layer, 4, **kw),
    'doped': lambda layer, **kw: Doped(layer, 2, **kw),
}
WORDS = {
    'parallel': 'Parallel of 3 branches',
    'factorized': 'Factorized of rank 4',
    'doped': 'Doped of rank 2',
}
SIZES = {
    nn.Linear: (),
    nn.Conv1d: (9,),
    nn.Conv2d: (9, 8),
    nn.Conv3d: (5, 6, 7),
}
NORMS = {
    nn.Linear: nn.BatchNorm1d,
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
}


@torch.no_grad()
def trained(model):
    """Give every norm the statistics and weights of a trained network."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.running_mean is not None:
                module.running_mean.uniform_(-1, 1)
                module.running_var.uniform_(0.5, 2)
            if module.weight is not None:
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-1, 1)
        elif isinstance(getattr(module, 'bias', None), torch.Tensor):
            module.bias.uniform_(-1, 1)
    model.eval()  # OpenMMLab's backbones return nothing here.
    return model


def assert_same(after, before):
    # To the scale of the output, which random statistics leave open.
    assert after.dtype == before.dtype and before.abs().max() > 0.1
    error = (after - before).abs().max() / before.abs().max().clamp(min=1)
    assert error < TOLERANCE[before.dtype], float(error)


@torch.no_grad()
def assert_folds_to_the_same(model, x, **kwargs):
    before = model(x)
    report = fold(model, **kwargs)
    assert_same(model(x), before)
    return report


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('inner', ['none', 'norm'])
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('kind', [nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear])
@pytest.mark.parametrize('member', MAKE)
def test_members_become_one_plain_layer(member, kind, bias, inner, dtype):
    size = () if kind is nn.Linear else (3,)
    shape = {} if kind is nn.Linear else dict(stride=2, padding=1)
    layer = kind(6, 8, *size, **shape, bias=bias, dtype=dtype)
    composite = MAKE[member](
        layer, inner=inner, norm=lambda n: NORMS[kind](n, dtype=dtype)
    )
    model = trained(nn.Sequential(composite))
    x = torch.randn(2, 6, *SIZES[kind], dtype=dtype)
    report = assert_folds_to_the_same(model, x)
    folded = model[0]
    assert type(folded) is kind and not folded.training
    assert folded.weight.shape == layer.weight.shape
    assert (folded.bias is not None) == (bias or inner == 'norm')
    assert report == FoldReport({'0': f'{WORDS[member]} -> {folded}'}, [], {})
    assert len(list(model.modules())) == 2


@pytest.mark.parametrize(
    'options',
    [
        dict(stride=(2, 1), padding=(2, 1), dilation=(2, 1)),
        dict(groups=2, padding=1),
        dict(padding='same'),
        dict(padding=1, padding_mode='reflect'),
        dict(padding=2, padding_mode='circular', groups=2, stride=2),
    ],
)
@pytest.mark.parametrize('inner', ['none', 'norm'])
@pytest.mark.parametrize('member', MAKE)
def test_the_layer_keeps_what_a_convolution_has(member, inner, options):
    layer = nn.Conv2d(4, 6, 3, **options)
    model = trained(nn.Sequential(MAKE[member](layer, inner=inner)))
    assert assert_folds_to_the_same(model, torch.randn(2, 4, 9, 8)).folded


@pytest.mark.parametrize(
    'norm', [nn.SyncBatchNorm, lambda n: nn.BatchNorm2d(n, affine=False)]
)
@pytest.mark.parametrize('member', MAKE)
def test_inner_norms_of_other_kinds(member, norm):
    layer = MAKE[member](nn.Conv2d(4, 6, 3), inner='norm', norm=norm)
    model = trained(nn.Sequential(layer))
    report = assert_folds_to_the_same(model, torch.randn(2, 4, 9, 8))
    assert report.folded and not report.kept


def test_half_precision_is_rounded_once():
    layer = nn.Conv2d(8, 8, 3, dtype=torch.bfloat16)
    exact = trained(nn.Sequential(Factorized(layer, 8)).double())
    model = copy.deepcopy(exact).bfloat16()
    exact.load_state_dict(model.state_dict())
    fold(model)
    fold(exact)
    assert model[0].weight.dtype == model[0].bias.dtype == torch.bfloat16
    assert torch.equal(model[0].weight, exact[0].weight.bfloat16())


def test_folding_draws_no_random_numbers():
    model = nn.Sequential(Factorized(nn.Conv2d(2, 2, 3), 2)).eval()
    state = torch.get_rng_state()
    fold(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_shared_composite_stays_shared():
    layer = Parallel(nn.Conv2d(3, 4, 3), 2, inner='norm')
    model = make_block(
        'Two',
        lambda self, x: self.first(x) + 2 * self.second(x + 1) + self.block(x),
        first=layer,
        second=layer,
        block=nn.Sequential(layer, nn.ReLU()),
    )
    report = assert_folds_to_the_same(trained(model), torch.randn(2, 3, 5, 5))
    assert list(report.folded) == ['first', 'second', 'block.0']
    assert model.first is model.second is model.block[0]
    assert len(list(model.parameters())) == 2


# What cannot be folded, and says so.


def group_norm(channels):
    return nn.GroupNorm(1, channels)


def no_statistics(channels):
    return nn.BatchNorm2d(channels, track_running_stats=False)


@pytest.mark.parametrize(
    'member, reason',
    [
        ('parallel', "inner='norm_act'"),
        ('factorized', "inner='norm_act'"),
        ('doped', "low_rank cannot be folded: .*inner='norm_act'"),
    ],
)
def test_an_activation_inside_is_kept(member, reason):
    block = MAKE[member](nn.Conv2d(4, 6, 3), inner='norm_act')
    model = trained(nn.Sequential(block, nn.BatchNorm2d(6)))
    report = assert_folds_to_the_same(model, torch.randn(2, 4, 5, 5))
    assert model[0] is block and not report.folded
    assert re.search(reason, report.kept['0'])
    assert type(block).__name__ in report.kept['1']
    assert_all_that_remains_is_named(model, report)


def assert_all_that_remains_is_named(model, report):
    kinds = (Composite, nn.modules.batchnorm._BatchNorm)
    assert report.kept.keys() == {
        n for n, m in model.named_modules() if isinstance(m, kinds)
    }
    assert all(report.kept.values())


@pytest.mark.parametrize(
    'norm, name', [(group_norm, 'GroupNorm'), (no_statistics, 'BatchNorm2d')]
)
@pytest.mark.parametrize('member', MAKE)
def test_norms_that_depend_on_the_input_are_kept(member, norm, name):
    layer = nn.Conv2d(4, 6, 3)
    model = nn.Sequential(MAKE[member](layer, inner='norm', norm=norm)).eval()
    report = assert_folds_to_the_same(model, torch.randn(2, 4, 5, 5))
    assert f'{name} has no running statistics' in report.kept['0']
    assert_all_that_remains_is_named(model, report)


class MyParallel(Parallel):
    """May do anything."""


def two_branches(change):
    parallel = Parallel(nn.Conv2d(3, 4, 1), 2)
    change(parallel)
    return parallel


def ignore(*args):
    pass


@pytest.mark.parametrize(
    'composite, reason',
    [
        (two_branches(lambda m: m.register_forward_hook(ignore)), 'it has'),
        (
            two_branches(
                lambda m: m.layers[1].register_forward_pre_hook(ignore)
            ),
            'layers.1 has hooks',
        ),
        (
            two_branches(lambda m: parametrizations.weight_norm(m.layers[0])),
            'layers.0',
        ),
        (
            two_branches(lambda m: m.layers.append(nn.Dropout())),
            'an inner layer is a Dropout',
        ),
        (MyParallel(nn.Conv2d(3, 4, 1), 2), 'MyParallel'),
        (Parallel(nn.Linear(3, 4), 2, inner='norm'), 'LayerNorm'),
    ],
)
def test_an_altered_composite_is_kept(composite, reason):
    model = nn.Sequential(composite).eval()
    assert reason in fold(model).kept['0']
    assert model[0] is composite


@pytest.mark.parametrize('make', MAKE.values())
def test_the_root_cannot_be_replaced(make):
    with pytest.raises(ValueError, match='fold the module that holds it'):
        fold(make(nn.Conv2d(4, 6, 1)).eval())


@pytest.mark.parametrize('part', [0, 1])
def test_training_mode_is_refused_and_nothing_done(part):
    model = nn.Sequential(Parallel(nn.Conv2d(3, 4, 1), 2), nn.BatchNorm2d(4))
    model.eval()
    model[part].train()
    children = list(model)
    with pytest.raises(ValueError, match=r'call model\.eval\(\) first'):
        fold(model)
    assert list(model) == children
    # Only norms and composites need it.
    model.train()
    for module in model[0].modules():
        module.eval()
    model[1].eval()
    assert len(fold(model).folded) == 1


# Norms behind plain layers.


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
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm2d(4)), 'not for what'),
        (nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm1d(4)), 'not for what'),
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


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('inner', ['none', 'norm', 'norm_act'])
@pytest.mark.parametrize('family', MAKE)
@torch.no_grad()
def test_backbones_of_the_toolkit(family, inner, dtype):
    from mmpretrain.registry import MODELS

    import sift_mm  # noqa: F401

    size = dict(depth=18, base_channels=16, stem_channels=16)
    model = trained(
        MODELS.build(
            dict(
                type='SparseIFTResNet',
                family=family,
                sparsity=0.75,
                inner=inner,
                **size,
            )
        ).to(dtype)
    )
    x = torch.randn(2, 3, 64, 64, dtype=dtype)
    (before,) = model(x)
    composites = copy.deepcopy(model)
    report = fold(composites, norms=False)
    assert bool(report.folded) == (inner != 'norm_act') and not report.norms
    assert_same(composites(x)[0], before)
    if inner == 'none':
        plain_model = MODELS.build(dict(type='mmpretrain.ResNet', **size))
        plain_model.to(dtype).load_state_dict(composites.state_dict())
        plain_model.eval()
        assert_same(plain_model(x)[0], before)
    report = fold(model)
    assert_same(model(x)[0], before)
    assert report.norms
    assert_all_that_remains_is_named(model, report)
