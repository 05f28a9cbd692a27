import copy
import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from helpers.folding import (
    SIZES,
    assert_all_that_remains_is_named,
    assert_folds_to_the_same,
    assert_same,
    no_statistics,
    trained,
)
from helpers.networks import make_block
from sift_mm.deploy import FoldReport, fold
from sift_mm.layers import Doped, Factorized, Parallel

pytestmark = pytest.mark.usefixtures('seed')
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
NORMS = {
    nn.Linear: nn.BatchNorm1d,
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
}


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


@pytest.mark.parametrize('inner', ['none', 'norm', 'norm_act'])
@pytest.mark.parametrize('family', MAKE)
@torch.no_grad()
def test_backbones_of_the_toolkit(family, inner):
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
        )
    )
    x = torch.randn(2, 3, 64, 64)
    (before,) = model(x)
    composites = copy.deepcopy(model)
    report = fold(composites, norms=False)
    assert bool(report.folded) == (inner != 'norm_act') and not report.norms
    assert_same(composites(x)[0], before)
    if inner == 'none':
        plain_model = MODELS.build(dict(type='mmpretrain.ResNet', **size))
        plain_model.load_state_dict(composites.state_dict())
        plain_model.eval()
        assert_same(plain_model(x)[0], before)
    report = fold(model)
    assert_same(model(x)[0], before)
    assert report.norms
    assert_all_that_remains_is_named(model, report)
