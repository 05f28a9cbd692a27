"""sift_mm.transform on networks of other libraries."""

from functools import reduce
from itertools import accumulate

import pytest
import torch
import torchvision
from mmpretrain.registry import MODELS
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet as resnets

import sift_mm
from helpers.networks import make_block
from sift_mm.flops import count_flops
from sift_mm.layers import Member, Parallel, families
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


def vit():
    size = dict(image_size=32, patch_size=8, hidden_dim=32, mlp_dim=128)
    return torchvision.models.VisionTransformer(
        **size, num_layers=2, num_heads=2, num_classes=10
    )


def swin():
    return torchvision.models.SwinTransformer(
        [4, 4], 16, [2, 2], [2, 2], [4, 4], num_classes=10
    )


def resnet(block=resnets.BasicBlock, blocks=(2, 2, 1, 1), **kwargs):
    return resnets.ResNet(block, blocks, **kwargs)


def mmpretrain(kind, **kwargs):
    return MODELS.build(dict(type=kind, **kwargs))


def mmpretrain_vit():
    arch = dict(embed_dims=48, num_layers=2, num_heads=2)
    arch['feedforward_channels'] = 192
    size = dict(img_size=32, patch_size=8)
    return mmpretrain('VisionTransformer', arch=arch, **size)


CONVNEXT = dict(depths=[1, 1, 2, 1], channels=[16, 32, 64, 128])
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
    'mmpretrain-convnext': lambda: mmpretrain('ConvNeXt', arch=CONVNEXT),
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
    'mmpretrain-convnext': (10, 13),
}


@pytest.mark.parametrize('name', NETWORKS)
@pytest.mark.parametrize('family', families())
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
    if 'resnext' not in name and (name, family) != (
        'mmpretrain-convnext',
        'doped',
    ):
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


@pytest.mark.parametrize('sparsity', [0.5, 0.75])
def test_residual_blocks_by_hand(sparsity):
    # BasicBlock: both convolutions touch the one inner width, so that it is
    # 1 / (1 - s) times as wide. Bottleneck at stride 1: 1x1, 3x3 and 1x1 of
    # 4 m m, 9 m m and 4 m m weights at equal resolution.
    model = resnet()
    sift_mm.transform(model, 'wide', sparsity)
    assert model.layer2[1].conv1.out_channels == round(128 / (1 - sparsity))
    assert model.layer2[1].bn1.num_features == round(128 / (1 - sparsity))
    assert isinstance(model.layer2[1].conv2, WideConv2d)
    assert model.layer2[1].bn2.num_features == 128
    assert type(model.layer2[0].downsample[0]) is nn.Conv2d
    model = resnet(resnets.Bottleneck, (2, 1, 1, 1))
    sift_mm.transform(model, 'wide', sparsity)
    width = model.layer1[1].conv2.in_channels
    k = width / 64
    assert (1 - sparsity) * (8 * k + 9 * k * k) == pytest.approx(17, rel=0.01)


def test_variance_of_a_wide_pair_under_masks_is_the_dense_ones():
    dense = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))
    x = torch.randn(512, 64)
    expected = F.linear(F.linear(x, dense[0].weight).relu(), dense[2].weight)
    report = sift_mm.transform(dense, 'wide', 0.75)
    with torch.no_grad():
        for name in report.sparse_parameters:
            weight = dense.get_parameter(name)
            weight *= torch.rand_like(weight) < 0.25
    assert 0.6 < dense(x).var() / expected.var() < 1.6


def test_include_and_exclude():
    model = resnet()
    patterns = dict(include=['layer1.*', 'fc'], exclude=['*.1.conv2'])
    report = sift_mm.transform(model, 'parallel', 0.75, **patterns)
    convolutions = [f'layer1.{n}' for n in ('0.conv1', '0.conv2', '1.conv1')]
    assert list(report.replaced) == [*convolutions, 'fc']
    assert report.skipped['layer1.1.conv2'] == 'not asked for'
    assert isinstance(model.fc, Parallel)
    assert type(model.layer1[1].conv2) is nn.Conv2d


def test_stem_and_classifier_stay_unless_asked_for():
    report = sift_mm.transform(vit(), 'factorized', 0.5)
    assert 'stem' in report.skipped['conv_proj']
    assert 'classifier' in report.skipped['heads.head']
    names = ['conv_proj', 'heads.head']
    report = sift_mm.transform(vit(), 'factorized', 0.5, include=names)
    assert list(report.replaced) == names


def linear(width=8):
    return nn.Linear(width, width)


def pair():
    return nn.Sequential(linear(), nn.ReLU(), linear())


def residual():
    """Build a block that adds its input between its layers."""
    return make_block(
        'Residual',
        lambda self, x: self.second(x + self.first(x)),
        first=linear(),
        second=linear(),
    )


class Odd(nn.Linear):
    """Its weight is not used as a linear layer's."""

    def forward(self, x):
        return F.linear(x, self.weight.abs())


def two_inputs():
    """Build a block of two inputs."""
    return make_block(
        'TwoInputs',
        lambda self, x, scale: self.b(self.a(x)) * scale,
        a=linear(),
        b=linear(),
    )


def kept():
    """Build a block that returns what is between its layers."""
    return make_block(
        'Kept',
        lambda self, x: list(
            accumulate(self.body, lambda y, layer: layer(y), initial=x)
        ),
        body=pair(),
    )


def only_training():
    """Build a block with an auxiliary layer in training."""

    def run(self, x):
        hidden = self.first(x)
        if self.training:
            self.side(hidden.transpose(1, 2))
        return self.second(hidden)

    layers = dict(first=nn.Linear(8, 16), second=nn.Linear(16, 8))
    return make_block('OnlyTraining', run, **layers, side=nn.Conv1d(16, 4, 1))


class Response(nn.Module):
    """Has numbers of its own for each channel, and says how many."""

    def __init__(self, width):
        super().__init__()
        self.width = width
        self.gamma = nn.Parameter(torch.arange(width).float())
        self.register_buffer('shift', torch.ones(1, width))

    def forward(self, x):
        assert x.shape[-1] == self.width
        return x * self.gamma + self.shift


def responding():
    """Build a block that registers its middle layer last."""
    return make_block(
        'Responding',
        lambda self, x: self.second(self.response(self.first(x))),
        first=nn.Linear(8, 16),
        second=nn.Linear(16, 8),
        response=Response(16),
    )


def conv_norm(d_in, d_out):
    return make_block(
        'ConvNorm',
        lambda self, x: self.bn(self.conv(x)).relu(),
        conv=nn.Conv2d(d_in, d_out, 3, padding=1, bias=False),
        bn=nn.BatchNorm2d(d_out),
    )


def branches():
    """Build two branches, one of them a chain."""
    return make_block(
        'Branches',
        lambda self, x: torch.cat([self.one(x), self.two_2(self.two_1(x))], 1),
        one=conv_norm(8, 6),
        two_1=conv_norm(8, 5),
        two_2=conv_norm(5, 6),
    )


def list_reader():
    """Build a block that reads a list, as mmpretrain's DenseNet does."""

    def run(self, x):
        assert isinstance(x, list)
        return self.second(self.first(torch.cat(x, 1)))

    layers = dict(first=nn.Conv2d(8, 16, 1), second=nn.Conv2d(16, 8, 1))
    return make_block('ListReader', run, **layers)


def splits():
    """Build a block that splits its channels, as ShuffleNet V2 does."""

    def run(self, x):
        one, two = x.chunk(2, 1)
        return torch.cat([one, self.body(two)], 1)

    body = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1))
    return make_block('Splits', run, body=body)


def gated():
    """Build a gated pair, as in a SwiGLU."""

    def run(self, x):
        gate, hidden = self.w12(x).chunk(2, -1)
        return self.w3(self.norm(F.silu(gate) * hidden))

    layers = dict(w12=nn.Linear(8, 32), norm=Response(16))
    return make_block('Gated', run, **layers, w3=nn.Linear(16, 8))


def one_size():
    """Build a network for images of 224 pixels alone."""
    return make_block(
        'OneSize',
        lambda self, x: self.classifier(self.features(x).flatten(1)),
        features=nn.Sequential(
            nn.Conv2d(3, 8, 3, 32, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        ),
        classifier=nn.Linear(8 * 7 * 7, 10),
    )


def asks():
    """Build two blocks, one of which returns its hidden features."""

    def show(self, x, inside=False):
        hidden = self.second(self.first(x).relu()).relu()
        return (self.third(hidden), hidden) if inside else self.third(hidden)

    def run(self, x):
        out, hidden = self.shows(self.pair(x), inside=True)
        return out, self.reads(hidden)

    layers = {name: linear() for name in ('first', 'second', 'third')}
    shows = make_block('Shows', show, **layers)
    return make_block(
        'Asks', run, pair=pair(), shows=shows, reads=nn.Linear(8, 4)
    )


def listed():
    """Build a residual block that runs a ModuleList in turn."""
    return make_block(
        'Listed',
        lambda self, x: x + reduce(lambda y, one: one(y), self.body, x),
        body=nn.ModuleList(
            [
                nn.Conv2d(8, 8, (3, 1), padding=(1, 0)),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.Conv2d(8, 8, (1, 3), padding=(0, 1)),
            ]
        ),
    )


def side_by_side():
    """Build a block that runs a ModuleList side by side."""
    return make_block(
        'SideBySide',
        lambda self, x: sum(layer(x) for layer in self.body),
        body=nn.ModuleList([linear(), linear()]),
    )


def hooked():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[0].register_forward_hook(lambda *args: None)
    return model


def twice():
    layer = nn.Linear(8, 8)
    one, two = nn.Sequential(layer), nn.Sequential(layer)
    return nn.Sequential(one, nn.ReLU(), two)


ATTENTION = 'encoder.layers.encoder_layer_0.self_attention'
NORMED = nn.utils.parametrizations.weight_norm(linear())
GROUPS_OF_TWO = nn.Conv2d(16, 8, 1, groups=8)
HALVES = nn.Conv2d(64, 64, 3, groups=2), nn.Conv2d(64, 64, 3)


@pytest.mark.parametrize(
    'model, family, name, words',
    [
        (residual(), 'wide', 'first', 'does not run with a wider'),
        (nn.Sequential(Odd(8, 8)), 'doped', '0', 'Odd'),
        (two_inputs(), 'wide', 'a', 'on a tensor alone'),
        (kept(), 'wide', 'body.0', 'changes the output of Kept'),
        (only_training(), 'wide', 'first', 'does not run with a wider'),
        (nn.Sequential(nn.LSTM(8, 8)), 'doped', '0', 'LSTM'),
        (hooked(), 'parallel', '0', 'forward hooks'),
        (twice(), 'wide', '0.0', 'several places'),
        (swin(), 'doped', 'features.1.0.attn.qkv', 'weight is read'),
        (vit(), 'parallel', ATTENTION, 'MultiheadAttention'),
        (nn.Sequential(nn.ConvTranspose2d(8, 8, 3)), 'doped', '0', 'Transpo'),
        (nn.Sequential(linear(2), linear(80)), 'doped', '0', 'rank'),
        (nn.Sequential(GROUPS_OF_TWO), 'factorized', '0', 'nearest 1.50'),
        (nn.Sequential(*HALVES), 'wide_factorized', '0', 'grouped'),
        (
            nn.Sequential(side_by_side()),
            'wide',
            '0.body.1',
            'SideBySide does not run with a wider inside',
        ),
        (nn.Sequential(NORMED), 'parallel', '0', 'ParametrizedLinear'),
    ],
)
def test_what_cannot_be_replaced_is_named(model, family, name, words):
    kept, state = model.get_submodule(name), torch.get_rng_state()
    try:
        report = sift_mm.transform(model, family, 0.5)
    except ValueError as error:
        assert words in str(error) and f'{name}: ' in str(error)
        if family == 'wide':  # A trial that fails draws nothing.
            assert torch.equal(state, torch.get_rng_state())
    else:
        assert words in report.skipped[name]
    assert model.get_submodule(name) is kept


def test_what_holds_numbers_for_each_channel_becomes_as_wide():
    model = responding()
    report = sift_mm.transform(model, 'wide', 0.75)
    assert list(report.replaced) == ['first', 'second']
    # 16 / (1 - .75) = 64: the sixteen numbers, four times.
    assert model.first.weight.shape == (64, 8)
    assert model.response.width == 64
    assert torch.equal(
        model.response.gamma, torch.arange(16).float().repeat(4)
    )
    assert model.response.shift.shape == (1, 64)
    x = torch.rand(2, 8)
    model(x).sum().backward()
    assert isinstance(model.response.gamma, nn.Parameter)
    assert model.response.gamma.grad.shape == (64,)


@pytest.mark.parametrize('sparsity, width', [(0.75, 64), (0.9, 160)])
def test_a_gated_pair_by_hand(sparsity, width):
    # Both layers touch the one hidden width, of 16: 1 / (1 - s) times it.
    model = gated()
    report = sift_mm.transform(model, 'wide', sparsity)
    assert model.w12.weight.shape == (2 * width, 8)
    assert model.norm.gamma.shape == (width,)
    assert model.w3.weight.shape == (8, width)
    ratios = [one.flops_ratio for one in report.replaced.values()]
    assert ratios == pytest.approx([1, 1])
    assert model(torch.rand(2, 8)).shape == (2, 8)
    report = sift_mm.transform(gated(), 'wide_factorized', 0.75)
    assert list(report.replaced) == ['w12', 'w3']


@pytest.mark.parametrize(
    'make, names',
    [
        (branches, ['two_1.conv', 'two_2.conv']),
        (list_reader, ['first', 'second']),
        (splits, ['body.0', 'body.1']),
        (one_size, ['features.1', 'features.2']),
        (listed, ['body.0', 'body.3']),
    ],
)
def test_chains_of_blocks_of_their_own_kind(make, names):
    report = sift_mm.transform(make(), 'wide', 0.75)
    assert list(report.replaced) == names


def test_a_list_of_modules_is_no_block():
    model = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
    with pytest.raises(ValueError, match='0: no width between it') as error:
        sift_mm.transform(model, 'wide', 0.75)
    assert 'ModuleList' not in str(error.value)


def test_an_example_tells_which_blocks_are_looked_into():
    model = asks()
    third = model.shows.third
    third.bias.requires_grad_(False)
    # Between second and third is what is shown: the chain of all three is
    # not one, that of the first two is.
    report = sift_mm.transform(model, 'wide', 0.5, example=torch.rand(2, 8))
    blocks = {'pair.0', 'pair.2', 'shows.first', 'shows.second'}
    assert set(report.replaced) == blocks
    assert 'is read from outside' in report.skipped['shows.third']
    assert model.shows.first.weight.shape == (16, 8)
    # What is undone trains as before.
    assert model.shows.third is third and third.weight.requires_grad
    assert not third.bias.requires_grad
    assert [o.shape for o in model(torch.rand(2, 8))] == [(2, 8), (2, 4)]
    with pytest.raises(RuntimeError, match='mat1 and mat2'):
        model = asks()
        sift_mm.transform(model, 'wide', 0.5)
        model(torch.rand(2, 8))


def test_an_example_tells_which_weights_are_read():
    model = swin()
    attention = model.features[1][0].attn
    # The source of a subclass does not say that it reads a weight.
    kind = type(attention)
    for block in (b for stage in model.features[1::2] for b in stage):
        block.attn.__class__ = type(
            'Plain', (kind,), {'forward': lambda s, x: kind.forward(s, x)}
        )
    report = sift_mm.transform(
        model, 'parallel', 0.5, example=torch.rand(1, 3, 32, 32)
    )
    assert 'no one weight' in report.skipped['features.1.0.attn.qkv']
    assert type(attention.qkv) is nn.Linear
    assert 'features.1.0.mlp.0' in report.replaced
    model(torch.rand(1, 3, 32, 32))


def test_a_layer_in_two_places_is_replaced_in_both():
    model = twice()
    sift_mm.transform(model, 'parallel', 0.5)
    assert isinstance(model[0][0], Parallel)
    assert model[2][0] is model[0][0]


def test_twice_is_not_done():
    model = resnet()
    sift_mm.transform(model, 'parallel', 0.5)
    with pytest.raises(ValueError, match='a Parallel layer already'):
        sift_mm.transform(model, 'doped', 0.5)
    model = resnet()
    sift_mm.transform(model, 'wide', 0.5)
    with pytest.raises(ValueError, match='a WideConv2d layer already'):
        sift_mm.transform(model, 'wide', 0.5, include=['layer?.?.conv?'])


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
    ]:
        assert word in report.skipped[name], name
    # Asked for, it keeps its bias, a prior.
    sift_mm.transform(model, 'parallel', 0.5, include=['retina_cls'])
    assert (model.retina_cls.layers[0].bias == -4.6).all()


def test_a_wider_norm_is_like_the_old_one():
    norm = nn.BatchNorm2d(32, eps=0.1, momentum=0.3)
    nn.init.constant_(norm.weight, 3)
    model = nn.Sequential(nn.Conv2d(8, 32, 3), norm, nn.Conv2d(32, 8, 3))
    sift_mm.transform(model, 'wide', 0.5)
    assert model[0].out_channels == model[1].num_features == 64
    assert (model[1].eps, model[1].momentum) == (0.1, 0.3)
    assert (model[1].weight == 1).all() and len(model[1].running_var) == 64


def test_a_group_norm_of_one_channel_each_stays_one():
    norm = nn.GroupNorm(32, 32)
    model = nn.Sequential(nn.Conv2d(8, 32, 3), norm, nn.Conv2d(32, 8, 3))
    sift_mm.transform(model, 'wide', 0.5)
    assert model[1].num_groups == model[1].num_channels == 64


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
