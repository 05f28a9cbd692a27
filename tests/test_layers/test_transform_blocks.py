"""sift_mm.transform on blocks of unusual forward methods."""

from functools import reduce
from itertools import accumulate

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sift_mm
from helpers.networks import make_block, swin, vit
from sift_mm.layers import Parallel

pytestmark = pytest.mark.usefixtures('seed')


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


def test_tokens_may_come_with_a_mask():
    block = make_block(
        'Masked',
        lambda self, x, mask: self.b(self.a(x if mask is None else x * mask)),
        a=linear(),
        b=linear(),
    )
    model = make_block('Encoder', lambda self, x: self.b(x, None), b=block)
    report = sift_mm.transform(model, 'wide', 0.75)
    assert report.replaced.keys() == {'b.a', 'b.b'}
    assert model(torch.rand(2, 8)).shape == (2, 8)


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
    assert 'no single weight' in report.skipped['features.1.0.attn.qkv']
    assert type(attention.qkv) is nn.Linear
    assert 'features.1.0.mlp.0' in report.replaced
    model(torch.rand(1, 3, 32, 32))


def test_a_layer_in_two_places_is_replaced_in_both():
    model = twice()
    sift_mm.transform(model, 'parallel', 0.5)
    assert isinstance(model[0][0], Parallel)
    assert model[2][0] is model[0][0]
