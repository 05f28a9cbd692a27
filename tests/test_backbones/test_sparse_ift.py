"""The backbones of three libraries, beside the libraries' own."""

import pytest
import torch
from mmdet.registry import MODELS as DET
from mmpretrain.registry import MODELS as CLS
from mmseg.registry import MODELS as SEG

import sift_mm.backbones
from sift_mm.isoflop import wide_width

# Registry, name of ours, name of theirs.
KINDS = [
    pytest.param(DET, 'SparseIFTResNet', 'ResNet', id='mmdet'),
    pytest.param(SEG, 'SparseIFTResNet', 'ResNet', id='mmseg'),
    pytest.param(CLS, 'SparseIFTResNet', 'ResNet', id='mmpretrain'),
    pytest.param(CLS, 'SparseIFTResNet_CIFAR', 'ResNet_CIFAR', id='cifar'),
]


def build(registry, name, seed=0, **kwargs):
    torch.manual_seed(seed)
    model = registry.build(dict(dict(type=name, depth=18), **kwargs))
    model.init_weights()
    return model


def narrow(width):
    return dict(base_channels=width, stem_channels=width)


def wide(registry, name='SparseIFTResNet', width=8, **kwargs):
    kwargs = dict(family='wide', sparsity=0.75) | narrow(width) | kwargs
    return build(registry, name, **kwargs)


@pytest.mark.parametrize('depth', [18, 50])
@pytest.mark.parametrize('registry, ours, theirs', KINDS)
def test_without_family_it_is_the_parent(registry, ours, theirs, depth):
    a, b = (
        build(registry, name, depth=depth, **narrow(8))
        for name in (ours, theirs)
    )
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
@pytest.mark.parametrize('registry, ours, theirs', KINDS[:2])
def test_wide_has_the_authors_widths(registry, ours, theirs, sparsity, width):
    cfg = dict(type=ours, depth=18, family='wide', sparsity=sparsity)
    with torch.device('meta'):
        model = registry.build(cfg)
    assert model.conv1.out_channels == width  # The stem grows along.
    last = 8 * width
    assert model.layer4[1].conv2.weight.shape == (last, last, 3, 3)
    assert model.out_channels[-1] == last


@pytest.mark.parametrize('registry, ours, theirs', KINDS)
def test_wide_loads_into_every_unmodified_resnet(registry, ours, theirs):
    model = wide(registry, ours, 16)
    for library in [CLS] if 'CIFAR' in ours else [DET, SEG, CLS]:
        plain = build(library, theirs, seed=1, **narrow(32))
        plain.load_state_dict(model.state_dict(), strict=True)


@pytest.mark.parametrize(
    'depth, count', [(18, 19), (34, 35), (50, 52), (101, 103), (152, 154)]
)
def test_sparse_are_the_convolutions_of_the_blocks(depth, count):
    # 8 blocks of 2 and 3 shortcuts; R-50: 16 blocks of 3 and 4.
    model = wide(CLS, width=2, depth=depth, sparsity=0.5)
    names = model.sparse_parameter_names()
    assert len(names) == count
    assert 'conv1.weight' not in names
    assert 'layer2.0.downsample.0.weight' in names
    parameters = dict(model.named_parameters())
    assert all(parameters[name].dim() == 4 for name in names)


def test_plugins_stay_dense():
    plugin = dict(type='ContextBlock', ratio=1 / 4)
    plugins = [dict(cfg=plugin, position='after_conv3')]
    model = wide(DET, depth=50, plugins=plugins)
    names = model.sparse_parameter_names()
    assert len(names) == 52
    assert not any('context' in name for name in names)


@pytest.mark.parametrize('registry, ours, theirs', KINDS)
def test_last_norms_start_at_zero_as_the_parents(registry, ours, theirs):
    model = wide(registry, ours, sparsity=0.5)
    assert not model.layer1[0].norm2.weight.any()
    assert model.layer1[0].norm1.weight.all()


def test_no_width_rounds_to_nothing():
    model = wide(DET, width=1, sparsity=0.5)
    assert model.base_channels == wide_width(1, 0.5) == 1


def test_building_the_twin_leaves_the_random_state_alone():
    model = wide(CLS, width=4, stem_channels=6)
    state = torch.get_rng_state()
    twin = model.dense_twin()
    assert torch.equal(state, torch.get_rng_state())
    assert twin.conv1.out_channels == 6
    assert twin.layer1[0].conv1.out_channels == 4
    assert not hasattr(twin, 'family')


def test_positional_arguments_keep_the_librarys_order():
    model = DET.get('SparseIFTResNet')(
        18, 4, 10, 16, family='wide', sparsity=0.75
    )
    assert model.conv1.weight.shape == (20, 4, 7, 7)
    assert model.base_channels == 32
    with pytest.raises(TypeError, match='in_channels'):
        DET.get('SparseIFTResNet')(18, 4, in_channels=3)


@pytest.mark.parametrize(
    'kwargs, error, words',
    [
        (dict(sparsity=1.0, family='wide'), ValueError, r'\[0, 1\)'),
        (dict(sparsity=-0.1, family='wide'), ValueError, r'\[0, 1\)'),
        (dict(sparsity='a', family='wide'), ValueError, r'\[0, 1\)'),
        (dict(sparsity=0.5, family='tall'), ValueError, "'wide'"),
        (dict(sparsity=0.5), ValueError, 'without a family'),
        (dict(family='wide'), ValueError, 'needs a sparsity'),
        (
            dict(family='wide', sparsity=0.5, dcn=dict(type='DCN')),
            ValueError,
            'dcn',
        ),
        (dict(flops='some'), ValueError, 'match_model'),
        (dict(depth=20), KeyError, '18, 34, 50, 101, 152'),
    ],
)
@pytest.mark.parametrize('registry, ours, theirs', KINDS)
def test_mistakes_get_a_sentence(registry, ours, theirs, kwargs, error, words):
    with pytest.raises(error, match=words):
        registry.get(ours)(**dict(depth=18) | kwargs)


def test_a_library_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(sift_mm.backbones, 'find_spec', lambda name: None)
    # A module that was imported is found without asking.
    monkeypatch.delattr(sift_mm.backbones, 'mmdet')
    sift_mm.backbones.register_backbones()  # Not an error.
    with pytest.raises(ImportError, match='pip install onedl-mmdetection'):
        _ = sift_mm.backbones.mmdet
