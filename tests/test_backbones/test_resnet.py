"""Our ResNets beside those of the three libraries."""

import copy

import pytest
import torch
from mmdet.registry import MODELS as DET
from mmengine.model import PretrainedInit
from mmpretrain.registry import MODELS as CLS
from mmseg.registry import MODELS as SEG
from torch import nn
from torch.nn import functional as F

from sift_mm.layers import Composite, Doped, Factorized, Parallel

LAYERS = dict(
    parallel=Parallel,
    factorized=Factorized,
    doped=Doped,
    wide_factorized=Factorized,
)
# Each library and each member, with one of the other.
PAIRS = [
    pytest.param(DET, 'SparseIFTResNet', 'parallel', id='mmdet'),
    pytest.param(SEG, 'SparseIFTResNet', 'factorized', id='mmseg'),
    pytest.param(CLS, 'SparseIFTResNet', 'doped', id='mmpretrain'),
    pytest.param(CLS, 'SparseIFTResNet_CIFAR', 'wide_factorized', id='cifar'),
]


KINDS = [pytest.param(*one.values[:2], id=one.id) for one in PAIRS]
AND_DEPTH = [(*one.values, 18) for one in KINDS] + [(*KINDS[0].values, 50)]


def narrow(width):
    return dict(base_channels=width, stem_channels=width)


def build(registry=SEG, name='SparseIFTResNet', seed=0, **kwargs):
    torch.manual_seed(seed)
    if 'SparseIFT' in name:
        kwargs = dict(sparsity=0.75) | kwargs
    model = registry.build(dict(type=name, depth=18) | narrow(16) | kwargs)
    model.init_weights()
    return model


def layers_of(model):
    # A Doped layer has a Factorized one inside.
    return {
        n: m
        for n, m in model.named_modules()
        if isinstance(m, Composite) and not n.endswith('low_rank')
    }


@pytest.mark.parametrize('registry, name, depth', AND_DEPTH)
def test_without_family_it_is_the_parent(registry, name, depth):
    a = build(registry, name, depth=depth, sparsity=None)
    b = build(registry, name.removeprefix('SparseIFT'), depth=depth)
    assert a.sparse_parameter_names() == []
    states = a.state_dict(), b.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    x = torch.randn(2, 3, 64, 64)
    a.train(), b.train()
    for first, second in zip(a(x), b(x), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize(
    'sparsity, width', [(0.5, 90), (0.75, 128), (0.9, 202)]
)
@pytest.mark.parametrize('registry, name', KINDS[:2])
def test_wide_has_the_authors_widths(registry, name, sparsity, width):
    cfg = dict(type=name, depth=18, family='wide', sparsity=sparsity)
    with torch.device('meta'):
        model = registry.build(cfg)
    assert model.conv1.out_channels == width  # The stem grows along.
    last = 8 * width
    assert model.layer4[1].conv2.weight.shape == (last, last, 3, 3)
    assert model.out_channels[-1] == last


@pytest.mark.parametrize('registry, name', KINDS)
def test_wide_loads_into_every_unmodified_resnet(registry, name):
    state = build(registry, name, family='wide').state_dict()
    for library in [CLS] if 'CIFAR' in name else [DET, SEG, CLS]:
        plain = build(library, name.removeprefix('SparseIFT'), **narrow(32))
        plain.load_state_dict(state, strict=True)


@pytest.mark.parametrize(
    'depth, count', [(18, 19), (34, 35), (50, 52), (101, 103), (152, 154)]
)
def test_sparse_are_the_convolutions_of_the_blocks(depth, count):
    # 8 blocks of 2 and 3 shortcuts; R-50: 16 blocks of 3 and 4.
    model = build(CLS, family='wide', depth=depth, **narrow(2))
    names = model.sparse_parameter_names()
    assert len(names) == count
    assert 'conv1.weight' not in names
    assert 'layer2.0.downsample.0.weight' in names
    assert all(model.get_parameter(name).dim() == 4 for name in names)


def test_plugins_stay_dense():
    plugin = dict(type='ContextBlock', ratio=1 / 4)
    plugins = [dict(cfg=plugin, position='after_conv3')]
    model = build(DET, family='wide', depth=50, plugins=plugins)
    names = model.sparse_parameter_names()
    assert len(names) == 52
    assert not any('context' in name for name in names)


def test_building_the_twin_leaves_the_random_state_alone():
    model = build(CLS, family='wide', base_channels=4, stem_channels=6)
    state = torch.get_rng_state()
    twin = model.dense_twin()
    assert torch.equal(state, torch.get_rng_state())
    assert twin.conv1.out_channels == 6
    assert twin.layer1[0].conv1.out_channels == 4
    assert not hasattr(twin, 'family')


def test_positional_arguments_keep_the_librarys_order():
    kind = DET.get('SparseIFTResNet')
    model = kind(18, 4, 10, 16, family='wide', sparsity=0.75)
    assert model.conv1.weight.shape == (20, 4, 7, 7)
    assert model.base_channels == 32
    with pytest.raises(TypeError, match='in_channels'):
        kind(18, 4, in_channels=3)


@pytest.mark.parametrize(
    'registry, name, family, depth',
    [(*one.values, 18) for one in PAIRS] + [(*PAIRS[0].values, 50)],
)
def test_all_convolutions_of_the_branches_are_replaced(
    registry, name, family, depth
):
    convs = 16 if depth == 18 else 48
    model = build(registry, name, family=family, depth=depth)
    found = layers_of(model)
    shortcuts = 3 if depth == 18 else 4
    whole = family == 'wide_factorized'
    assert len(found) == convs + shortcuts * whole
    assert all(isinstance(m, LAYERS[family]) for m in found.values())
    assert type(model.conv1) is nn.Conv2d
    assert ('layer2.0.downsample.0' in found) == whole
    sparse = model.sparse_parameter_names()
    layers = dict(parallel=4, factorized=2, doped=1, wide_factorized=0)
    assert len(sparse) == layers[family] * convs + shortcuts * (not whole)
    assert set(sparse) <= dict(model.named_parameters()).keys()
    model.train()
    out = model(torch.rand(2, 3, 64, 64))
    assert [x.shape[1] for x in out] == model.out_channels
    sum(x.square().mean() for x in out).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    'name, norm_act',
    [('SparseIFTResNet', True), ('SparseIFTResNet_CIFAR', False)],
)
def test_parallel_blocks_are_the_authors(name, norm_act):
    # CIFAR: relu(sum BN(conv)); ImageNet: relu(sum relu(BN(conv))). No norm
    # behind the sum.
    model = build(CLS, name, family='parallel', sparsity=0.5)
    block = model.layer2[0]
    state = {k: v.double() for k, v in block.state_dict().items()}
    block.double().train()
    x = torch.rand(4, 16, 8, 8, dtype=torch.float64)

    def norm(x, name):
        weight, bias = state[f'{name}.weight'], state[f'{name}.bias']
        return F.batch_norm(x, None, None, weight, bias, True)

    def branches(x, conv, stride):
        total = 0
        for i in range(2):
            weight = state[f'{conv}.layers.{i}.weight']
            out = F.conv2d(x, weight, None, stride, 1)
            out = norm(out, f'{conv}.norms.{i}')
            total = total + (out.relu() if norm_act else out)
        return total

    shortcut = F.conv2d(x, state['downsample.0.weight'], None, 2)
    shortcut = norm(shortcut, 'downsample.1')
    expected = branches(x, 'conv1', 2).relu()
    expected = (branches(expected, 'conv2', 1) + shortcut).relu()
    assert expected.mean() > 0.1
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize('inner', ['none', 'norm', 'norm_act'])
@pytest.mark.parametrize('family', ['parallel', 'doped'])
def test_the_inner_layer_is_an_option(family, inner):
    model = build(family=family, inner=inner)
    for name, layer in layers_of(model).items():
        assert layer.inner == inner
        block, _, conv = name.rpartition('.')
        behind = model.get_submodule(block)
        if family == 'parallel' and 'downsample' not in name:
            # The block's own norm is there only if no branch has one.
            kind = nn.BatchNorm2d if inner == 'none' else nn.Identity
            assert type(getattr(behind, f'norm{conv[-1]}')) is kind


@pytest.mark.parametrize('family', ['wide', 'parallel'])
@pytest.mark.parametrize(
    'kwargs',
    [
        dict(deep_stem=True, in_channels=6),
        dict(dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1)),
        dict(
            depth=50,
            avg_down=True,
            dilations=(1, 1, 2, 4),
            strides=(1, 2, 1, 1),
            contract_dilation=True,
            multi_grid=(1, 2, 4),
        ),
        dict(norm_cfg=dict(type='GN', num_groups=4), inner='norm'),
        dict(norm_cfg=dict(type='SyncBN', requires_grad=True), inner='norm'),
        dict(style='caffe', depth=50),
    ],
)
def test_the_parents_options_keep_working(family, kwargs):
    kwargs = copy.deepcopy(kwargs)
    if family == 'wide':
        kwargs.pop('inner', None)
    channels = kwargs.get('in_channels', 3)
    model = build(family=family, **kwargs)
    if kwargs.get('norm_cfg', {}).get('type') == 'SyncBN':
        norms = [m for m in model.modules() if isinstance(m, nn.SyncBatchNorm)]
        assert len(norms) >= 20 + (family != 'wide')  # Inner ones too.
        model.eval()  # In training they want a GPU.
    twin = model.dense_twin()
    x = torch.rand(2, channels, 64, 64)
    out = model(x)
    for ours, theirs in zip(out, twin(x), strict=True):
        assert ours.shape[2:] == theirs.shape[2:]
        assert ours.shape[1] == theirs.shape[1] * (1 + (family == 'wide'))
    assert [one.shape[1] for one in out] == model.out_channels
    assert not any('stem' in name for name in model.sparse_parameter_names())
    for name, layer in layers_of(model).items():
        old = twin.get_submodule(name)
        assert (layer.stride, layer.dilation) == (old.stride, old.dilation)


@pytest.mark.parametrize('family', ['parallel', 'wide_factorized'])
def test_the_three_libraries_build_the_same_network(family):
    x = torch.rand(1, 3, 64, 64)
    models = [build(registry, family=family) for registry in (CLS, DET, SEG)]
    outs = []
    for model in models:
        model.load_state_dict(models[0].state_dict(), strict=True)
        model.eval()
        outs.append(model(x)[-1])
    torch.testing.assert_close(outs[0], outs[1])
    torch.testing.assert_close(outs[0], outs[2])


@pytest.mark.parametrize('registry, name', KINDS[::3])
def test_blocks_start_as_the_identity(registry, name):
    # Plain blocks do, as the authors' and the parent's; others if asked to.
    # Where a ReLU is behind the norms of the branches, they would be stuck.
    x = torch.rand(2, 32, 8, 8)
    wide = build(registry, name, family='wide')
    wide.train()
    assert torch.equal(wide.layer1[1](x), x)
    x = x[:, :16]
    for inner in ('none', 'norm', 'norm_act'):
        kwargs = dict(family='parallel', inner=inner)
        model = build(registry, name, **kwargs)
        model.train()
        assert not torch.equal(model.layer1[1](x), x)
        kwargs['zero_init_residual'] = True
        model = build(registry, name, **kwargs)
        model.train()
        assert torch.equal(model.layer1[1](x), x) == (inner != 'norm_act')


def test_inner_layers_are_not_drawn_by_the_librarys_rule():
    # By Kaiming's rule, fan_out, V's variance would be 2 / 16.
    model = build(family='factorized', base_channels=32, inner='norm_act')
    layer = model.layer3[1].conv1
    rank = layer.v.in_channels
    # F scale^2 = 2 (fan_in over fan_out), over m r density of 1/2 and 1/4.
    assert layer.v.weight.var().item() == pytest.approx(
        2 / (0.5 * rank * 0.25), rel=0.1
    )
    assert layer.u.weight.var().item() == pytest.approx(
        1 / (9 * 128 * 0.25), rel=0.1
    )


@pytest.mark.parametrize('registry, name, family', PAIRS[::3])
def test_pretrained_weights_are_kept(registry, name, family, tmp_path):
    path = str(tmp_path / 'model.pth')
    kwargs = dict(family=family, zero_init_residual=False)
    saved = build(registry, name, seed=1, **kwargs).state_dict()
    torch.save(dict(state_dict=saved), path)
    plain = dict(type='Pretrained', checkpoint=path)
    for init_cfg in (plain, [plain], dict(plain, type=PretrainedInit)):
        loaded = build(registry, name, init_cfg=init_cfg, **kwargs)
        for key, value in saved.items():
            assert torch.equal(value, loaded.state_dict()[key]), key


def test_groups_of_the_blocks_norms_do_not_round_ranks():
    kwargs = dict(family='factorized', sparsity=0.5) | narrow(64)
    ranks = [
        [
            m.u.out_channels
            for m in build(norm_cfg=norm, **kwargs).modules()
            if isinstance(m, Factorized)
        ]
        for norm in (dict(type='BN'), dict(type='GN', num_groups=32))
    ]
    assert ranks[0] == ranks[1]


WS = dict(type='ConvWS')
GN32 = dict(type='GN', num_groups=32)


@pytest.mark.parametrize(
    'family, kwargs, words',
    [
        ('wide', dict(sparsity=1.0), r'\[0, 1\)'),
        (None, {}, 'without a family'),
        (None, dict(sparsity=None, inner='norm'), 'without a family'),
        ('wide', dict(sparsity=None), 'needs a sparsity'),
        ('wide', dict(dcn=dict(type='DCN')), 'dcn'),
        ('wide', dict(depth=20), '18, 34, 50, 101, 152'),
        (
            'wide',
            dict(conv_cfg=WS),
            'ConvWS2d.*masks do not support; set conv_cfg=None',
        ),
        ('factorized', dict(conv_cfg=WS), 'ConvWS2d.*conv_cfg=None'),
        ('parallel', dict(sparsity=0.2), 'layer1.0.conv1: .*1/3 or more'),
        (
            'doped',
            dict(base_channels=1, sparsity=0.1),
            'layer1.0.conv1: .*larger sparsity',
        ),
        ('wide', dict(inner='norm'), 'no inner layers'),
        ('parallel', dict(sparse_factors='u'), 'no factors'),
        (
            'wide',
            dict(sparsity=0.5, base_channels=64, norm_cfg=GN32),
            '32 groups do not divide the width of 90',
        ),
        (
            'wide_factorized',
            dict(sparsity=0.9, base_channels=2, stem_channels=64),
            "flops='nominal'",
        ),
    ],
)
def test_mistakes_get_a_sentence(family, kwargs, words):
    error = KeyError if 'depth' in kwargs else ValueError
    with pytest.raises(error, match=words):
        build(family=family, **kwargs)
