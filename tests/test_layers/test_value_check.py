"""Widened networks against dense ones, by values."""

import copy
from itertools import count

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from torchvision.ops import SqueezeExcitation

import sift_mm
from helpers.networks import make_block, put_dense, swin, vit
from sift_mm.layers import NothingReplaced

pytestmark = pytest.mark.usefixtures('seed')
WIDTH = 16


class Attention(nn.Module):
    """Attention as in OPT: the number of queries follows from the features."""

    def __init__(self, causal, order=('k', 'v', 'q', 'out'), width=WIDTH):
        super().__init__()
        self.causal = causal
        for name in order:
            self.add_module(name, nn.Linear(width, width))

    def forward(self, x):
        q, k, v = (
            layer(x).view(len(x), -1, 2, WIDTH // 2).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        out = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(out.transpose(1, 2).reshape(len(x), x.shape[1], -1))


class Decoder(nn.Module):
    """Language model of OPT's kind."""

    def __init__(self, causal=True, dropout=0.5):
        super().__init__()
        self.words = nn.Embedding(20, WIDTH)
        self.attention = Attention(causal)
        self.fc1 = nn.Linear(WIDTH, 4 * WIDTH)
        self.fc2 = nn.Linear(4 * WIDTH, WIDTH)
        self.dropout = dropout
        self.lm_head = nn.Linear(WIDTH, 20, bias=False)
        self.lm_head.weight = self.words.weight

    def forward(self, ids):
        x = self.words(ids)
        x = x + self.attention(x)
        hidden = F.dropout(F.relu(self.fc1(x)), self.dropout, self.training)
        return self.lm_head(x + self.fc2(hidden))


def ids():
    return torch.randint(0, 20, (2, 16))


def images():
    return torch.rand(2, 3, 32, 32)


def encoder():
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, 0.5, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


def resnet():
    block = torchvision.models.resnet.BasicBlock
    return torchvision.models.ResNet(block, (1, 1, 1, 1), num_classes=10)


def mobilenet():
    settings = [
        InvertedResidualConfig(16, 3, 32, 16, True, 'RE', 1, 1, 1.0),
        InvertedResidualConfig(16, 3, 64, 24, False, 'HS', 2, 1, 1.0),
    ]
    return torchvision.models.MobileNetV3(settings, 32, 10)


NETWORKS = {
    'decoder': (Decoder, ids, 2),
    'encoder': (encoder, lambda: torch.rand(2, 5, WIDTH), 4),
    'vit': (lambda: vit(WIDTH), images, 4),
    'swin': (swin, images, 8),
    'resnet': (resnet, images, 8),
    'mobilenet': (mobilenet, images, 6),
}


@pytest.mark.parametrize('with_example', [True, False])
@pytest.mark.parametrize('name', NETWORKS)
def test_a_wide_network_of_zero_channels_is_the_dense_one(name, with_example):
    make, inputs, layers = NETWORKS[name]
    dense, x = make(), inputs()
    for p in dense.parameters():
        nn.init.normal_(p, 0, 0.3)
    wide = copy.deepcopy(dense)
    example = x if with_example else None
    report = sift_mm.transform(wide, 'wide', 0.75, example=example)
    assert len(report.replaced) == layers
    assert not any('att' in layer for layer in report.replaced)
    put_dense(dense, wide)
    for mode in (False, True):
        for one in (dense, wide):
            one.train(mode)
            for part in one.modules():
                if isinstance(part, nn.Dropout):
                    part.p = 0.0
                elif isinstance(part, (Decoder, nn.MultiheadAttention)):
                    part.dropout = 0.0
        outs = []
        for one in (dense, wide):
            torch.manual_seed(0)  # Of stochastic depth.
            outs.append(one(x))
        torch.testing.assert_close(*outs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('with_example', [True, False])
@pytest.mark.parametrize('causal', [True, False])
def test_attention_of_opt_stays_and_no_token_sees_the_future(
    causal, with_example
):
    model, x = Decoder(causal), ids()
    example = x if with_example else None
    report = sift_mm.transform(model, 'wide', 0.75, example=example)
    assert list(report.replaced) == ['fc1', 'fc2']
    assert 'attention.q' in report.skipped
    model.eval()
    later = x.clone()
    later[:, 12] = (later[:, 12] + 1) % 20
    with torch.no_grad():
        moved = (model(x) != model(later)).any(-1).any(0)
    assert moved.nonzero().min() == (12 if causal else 0)


def pair(name, run, **layers):
    layers = dict(one=nn.Linear(16, 32), two=nn.Linear(32, 16)) | layers
    return make_block(name, run, **layers)


def convolutions(name, run, **layers):
    layers = (
        dict(one=nn.Conv2d(8, 16, 1), two=nn.Conv2d(16, 8, 3, padding=1))
        | layers
    )
    return make_block(name, run, **layers)


def shuffle(x):
    return x.view(len(x), 4, -1, *x.shape[2:]).transpose(1, 2).reshape(x.shape)


REFUSED = {
    'opt': lambda: Attention(True),
    'softmax': lambda: pair(
        'Softmax', lambda self, x: self.two(self.one(x).softmax(-1))
    ),
    'layer norm': lambda: pair(
        'Normed',
        lambda self, x: self.two(self.norm(self.one(x))),
        norm=nn.LayerNorm(32),
    ),
    'group norm': lambda: convolutions(
        'Grouped',
        lambda self, x: self.two(self.norm(self.one(x))),
        norm=nn.GroupNorm(4, 16),
    ),
    'shuffle': lambda: convolutions(
        'Shuffles',
        lambda self, x: self.two(shuffle(self.one(x))),
        one=nn.Conv2d(8, 16, 1, groups=4),
        two=nn.Conv2d(16, 8, 1, groups=4),
    ),
    'concatenation': lambda: convolutions(
        'Joins',
        lambda self, x: self.two(torch.cat([x, self.one(x)], 1)),
        two=nn.Conv2d(24, 8, 1),
    ),
    'squeeze': lambda: convolutions(
        'Squeezes',
        lambda self, x: self.two(self.gate(self.one(x))),
        gate=SqueezeExcitation(16, 4),
    ),
    'in training alone': lambda: pair(
        'Trains',
        lambda self, x: (
            self.two(h := self.one(x))
            + (h.mean(-1, keepdim=True) if self.training else 0)
        ),
    ),
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_mixes_channels_is_left_and_named(name):
    model = REFUSED[name]()
    x = torch.rand(
        2,
        *(
            (8, 8, 8)
            if hasattr(model, 'gate')
            or isinstance(getattr(model, 'one', None), nn.Conv2d)
            else (6, 16)
        ),
    )
    for example in (None, x):
        kept = dict(model.named_modules())
        try:
            report = sift_mm.transform(model, 'wide', 0.5, example=example)
        except NothingReplaced as error:
            report = error.report
        assert not {'one', 'two', 'q', 'out'} & report.replaced.keys()
        assert report.skipped['two' if 'two' in kept else 'out']


def test_what_gates_and_groups_keep_whole():
    def gate(self, x):
        a, b = self.one(x).chunk(2, -1)
        return self.two(F.silu(a) * b)

    layers = dict(one=nn.Linear(16, 32), two=nn.Linear(16, 16))
    model = make_block('Gates', gate, **layers)
    assert len(sift_mm.transform(model, 'wide', 0.5).replaced) == 2
    model = nn.Sequential(
        nn.Conv2d(8, 16, 1),
        nn.Conv2d(16, 16, 3, groups=4),
        nn.BatchNorm2d(16),
        nn.Conv2d(16, 8, 1, groups=2),
    )
    assert len(sift_mm.transform(model, 'wide', 0.5).replaced) == 3


def test_a_network_that_gives_other_outputs_at_every_run_is_refused():
    counter = count()

    def run(self, x):
        return self.two(self.one(x)) + next(counter)

    with pytest.raises(NothingReplaced, match='each run gives other outputs'):
        sift_mm.transform(pair('Counts', run), 'wide', 0.5)


def test_an_example_may_be_named_arguments():
    model = Decoder()
    report = sift_mm.transform(model, 'wide', 0.5, example=dict(ids=ids()))
    assert list(report.replaced) == ['fc1', 'fc2']
    with pytest.raises(ValueError, match='does not run with the example'):
        sift_mm.transform(Decoder(), 'wide', 0.5, example=dict(words=ids()))
