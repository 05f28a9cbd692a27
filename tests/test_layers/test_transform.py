"""sift_mm.transform on networks of other libraries."""

from itertools import cycle

import pytest
import torch
import torchvision
from mmpretrain.registry import MODELS
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet as resnets

import sift_mm
from helpers.networks import swin, vit
from sift_mm.flops import count_flops
from sift_mm.layers import Member, Parallel
from sift_mm.layers.wide import WideConv2d, WideLinear
from sift_mm.sparsity import (
    select_parameters,
    sparse_parameter_names,
)

pytestmark = pytest.mark.usefixtures('seed')


class GPTBlock(nn.Module):
    """A GPT's block: attention by hand, feed-forward layers by name."""

    def __init__(self, width=32):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.ln_2 = nn.LayerNorm(width)
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x):
        q, k, v = self.qkv(self.ln_1(x)).chunk(3, -1)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v))
        return x + self.c_proj(F.gelu(self.c_fc(self.ln_2(x))))


class GPT(nn.Module):
    """Two blocks; the output layer shares the embedding's weight."""

    def __init__(self, width=32, words=50):
        super().__init__()
        self.wte = nn.Embedding(words, width)
        self.blocks = nn.ModuleList(GPTBlock(width) for _ in range(2))
        self.lm_head = nn.Linear(width, words, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, x):
        x = self.wte((x[:, 0, 0] * 49).long().clamp(0, 49))
        for block in self.blocks:
            x = block(x)
        return self.lm_head(x)


def resnet(block=resnets.BasicBlock, blocks=(2, 2, 1, 1), **kwargs):
    return resnets.ResNet(block, blocks, **kwargs)


def mmpretrain(kind, **kwargs):
    return MODELS.build(dict(type=kind, **kwargs))


def mmpretrain_vit():
    arch = dict(embed_dims=48, num_layers=2, num_heads=2)
    arch['feedforward_channels'] = 192
    size = dict(img_size=32, patch_size=8)
    return mmpretrain('VisionTransformer', arch=arch, **size)


NETWORKS = {
    'resnet': resnet,
    'resnext': lambda: resnet(
        resnets.Bottleneck, (1, 2, 1, 1), groups=32, width_per_group=4
    ),
    'mobilenet': lambda: torchvision.models.mobilenet_v2(width_mult=0.5),
    'densenet': lambda: torchvision.models.DenseNet(8, (2, 2), 16),
    'vit': vit,
    'swin': swin,
    'gpt': GPT,
    'mmpretrain-vit': mmpretrain_vit,
    'mmpretrain-resnet50': lambda: mmpretrain(
        'ResNet', depth=50, base_channels=16
    ),
}
# Layers that are replaced: of chains, and by the other members.
REPLACED = {
    'resnet': (12, 15),
    'mobilenet': (32, 34),
    'densenet': (8, 9),
    'vit': (4, 4),
    'swin': (8, 9),
    'gpt': (4, 8),
    'mmpretrain-vit': (4, 8),
    'mmpretrain-resnet50': (48, 51),
}


# Families that replace layer by layer take turns with that of ranks.
RANKS = 'wide_factorized'
TURNS = cycle(['parallel', RANKS, 'doped', RANKS, 'factorized', RANKS])


@pytest.mark.parametrize(
    'name, family',
    [(name, family) for name in NETWORKS for family in ('wide', next(TURNS))],
)
def test_networks_of_other_libraries(name, family):
    model = NETWORKS[name]()
    x = torch.rand(2, 3, 32, 32)
    dense = count_flops(model, (32, 32))
    model.eval()
    shapes = _shapes(model(x))
    if (name, family) == ('resnext', 'wide_factorized'):
        with pytest.raises(ValueError, match='grouped'):
            sift_mm.transform(model, family, 0.75)
        return
    report = sift_mm.transform(model, family, 0.75)
    model.train()
    out = model(x)
    assert _shapes(out) == shapes
    if name != 'resnext':
        assert len(report.replaced) == REPLACED[name]['wide' not in family]
    # Whole channels and ranks are all that stands between this and 1.
    count = count_flops(model, (32, 32))
    sparse = count.sparse(dict.fromkeys(report.sparse_parameters, 0.25))
    assert sparse / dense.total == pytest.approx(1, abs=0.05)
    for one in report.replaced.values():
        assert one.flops_ratio == pytest.approx(1, abs=0.25)
    # All that holds weights is either replaced or named.
    assert set(report.sparse_parameters) == sparse_parameter_names(model)
    if family != 'wide_factorized':
        assert list(select_parameters(model))
    assert not report.replaced.keys() & report.skipped.keys()
    sum(one.sum() for one in _outs(out)).backward()
    for parameter in report.sparse_parameters:
        assert model.get_parameter(parameter).grad is not None


def _outs(out):
    return out if isinstance(out, tuple) else (out,)


def _shapes(out):
    return [one.shape for one in _outs(out)]


def test_a_feed_forward_pair_by_hand():
    # 1 / (1 - .75) = 4 times as wide, and nothing else touched.
    model = GPT()
    before = {n: p.clone() for n, p in model.named_parameters()}
    report = sift_mm.transform(model, 'wide', 0.75)
    assert list(report.replaced) == [
        f'blocks.{i}.{n}' for i in (1, 0) for n in ('c_fc', 'c_proj')
    ]
    for block in model.blocks:
        assert isinstance(block.c_fc, WideLinear)
        assert block.c_fc.weight.shape == (512, 32)
        assert block.c_proj.weight.shape == (32, 512)
    one = report.replaced['blocks.0.c_fc']
    assert 'out_features=128' in one.before
    assert 'out_features=512' in one.after
    assert one.flops_ratio == 1
    for name, p in model.named_parameters():
        if '.c_' not in name:
            assert torch.equal(p, before[name])
    assert 'classifier' in report.skipped['lm_head']
    assert 'blocks.0.c_fc' in str(report) and 'lm_head' in str(report)
    report = sift_mm.transform(
        model, 'doped', 0.75, include=['*proj', 'lm_head']
    )
    assert 'shares its weight' in report.skipped['lm_head']


def test_residual_blocks_by_hand():
    # BasicBlock: both convolutions touch the one inner width, so that it is
    # 1 / (1 - s) times as wide. Bottleneck at stride 1: 1x1, 3x3 and 1x1 of
    # 4 m m, 9 m m and 4 m m weights at equal resolution.
    model = resnet()
    sift_mm.transform(model, 'wide', 0.75)
    assert model.layer2[1].conv1.out_channels == 512
    assert model.layer2[1].bn1.num_features == 512
    assert isinstance(model.layer2[1].conv2, WideConv2d)
    assert model.layer2[1].bn2.num_features == 128
    assert type(model.layer2[0].downsample[0]) is nn.Conv2d
    model = resnet(resnets.Bottleneck, (2, 1, 1, 1))
    sift_mm.transform(model, 'wide', 0.75)
    width = model.layer1[1].conv2.in_channels
    k = width / 64
    assert 0.25 * (8 * k + 9 * k * k) == pytest.approx(17, rel=0.01)


def test_include_and_exclude():
    model = resnet()
    patterns = dict(include=['layer1.*', 'fc'], exclude=['*.1.conv2'])
    report = sift_mm.transform(model, 'parallel', 0.75, **patterns)
    convolutions = [f'layer1.{n}' for n in ('0.conv1', '0.conv2', '1.conv1')]
    assert list(report.replaced) == [*convolutions, 'fc']
    assert report.skipped['layer1.1.conv2'] == 'not asked for'
    assert isinstance(model.fc, Parallel)
    assert type(model.layer1[1].conv2) is nn.Conv2d


@pytest.mark.parametrize(
    'family, kind', [('parallel', 'Parallel'), ('wide', 'WideConv2d')]
)
def test_twice_is_not_done(family, kind):
    layers = nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)
    model = nn.Sequential(*layers)
    sift_mm.transform(model, family, 0.5)
    with pytest.raises(ValueError, match=f'a {kind} layer already'):
        sift_mm.transform(model, family, 0.5, include=['?'])


@pytest.mark.parametrize(
    'kwargs, words',
    [
        (dict(include=['layer9.*']), "'layer9.*' matches no layer.*conv1"),
        (dict(include='fc'), r"write \['fc'\]"),
        (dict(family='tall'), "'wide_factorized'"),
        (dict(sparsity=1.5), r'\[0, 1\)'),
    ],
)
def test_mistakes_are_named_and_change_nothing(kwargs, words):
    model = resnet()
    before = list(model.state_dict())
    with pytest.raises(ValueError, match=words):
        sift_mm.transform(
            model, **dict(dict(family='parallel', sparsity=0.5), **kwargs)
        )
    assert list(model.state_dict()) == before


def test_a_layer_that_stands_alone_is_not_replaced_inside_itself():
    layer = nn.Conv2d(8, 8, 3)
    for module in (layer, Member('parallel', 0.5).build(layer)):
        with pytest.raises(ValueError, match='itself a layer.*that holds it'):
            sift_mm.transform(module, 'parallel', 0.5)


def test_predictors_stems_frozen_and_zero_layers_are_left_and_named():
    model = nn.Sequential()
    model.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3))
    model.conv = nn.Conv2d(16, 16, 3)
    model.frozen = nn.Conv2d(16, 16, 3).requires_grad_(False)
    model.offset = nn.Conv2d(16, 16, 3)
    nn.init.zeros_(model.offset.weight)
    for name in ('cls_classifier', 'qa_outputs'):
        model.add_module(name, nn.Linear(16, 80))
    model.retina_cls = nn.Conv2d(16, 80, 3)
    nn.init.constant_(model.retina_cls.bias, -4.6)
    report = sift_mm.transform(model, 'parallel', 0.5)
    assert list(report.replaced) == ['conv']
    for name, word in [
        ('stem.0', 'stem'),
        ('stem.1', 'stem'),
        ('frozen', 'frozen'),
        ('offset', 'zero'),
        ('retina_cls', 'predictions'),
        ('cls_classifier', 'predictions'),
        ('qa_outputs', 'predictions'),
    ]:
        assert word in report.skipped[name], name
    # Asked for, it keeps its bias, a prior.
    sift_mm.transform(model, 'parallel', 0.5, include=['retina_cls'])
    assert (model.retina_cls.layers[0].bias == -4.6).all()


@pytest.mark.parametrize(
    'norm', [nn.BatchNorm2d(32, 0.1, 0.3), nn.GroupNorm(32, 32)]
)
def test_a_wider_norm_is_like_the_old_one(norm):
    nn.init.constant_(norm.weight, 3)
    model = nn.Sequential(nn.Conv2d(8, 32, 3), norm, nn.Conv2d(32, 8, 3))
    sift_mm.transform(model, 'wide', 0.5)
    assert model[0].out_channels == len(model[1].weight) == 64
    assert (model[1].weight == 1).all()
    if isinstance(norm, nn.GroupNorm):  # Groups of one channel stay so.
        assert model[1].num_groups == model[1].num_channels == 64
    else:
        assert (model[1].eps, model[1].momentum) == (0.1, 0.3)
        assert len(model[1].running_var) == model[1].num_features == 64


@pytest.mark.parametrize('family', ['wide', 'factorized'])
def test_a_runner_does_not_draw_the_layers_anew(family):
    # MMEngine's runs call init_weights, which a run of the network transformed
    # before would undo.
    model = mmpretrain_vit()
    report = sift_mm.transform(model, family, 0.5)
    weights = list(map(model.get_parameter, report.sparse_parameters))
    before = [weight.clone() for weight in weights]
    model.init_weights()
    assert all(map(torch.equal, weights, before))
