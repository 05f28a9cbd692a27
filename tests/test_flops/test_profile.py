"""Costs by layer, worked out by hand."""

import pytest
import torch
import torchvision
from torch import nn

from sift_mm.flops import Row, count_flops, mask_densities, profile


class Net(nn.Module):
    """A masked layer, a head on two scales, attention; 4 x 6 pixels."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Conv2d(4, 5, 1)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.unused = nn.Linear(2, 3)

    def forward(self, x):
        x = self.act(self.conv(x))
        tokens = x.flatten(2).transpose(1, 2)
        return (
            self.head(x),
            self.head(x[..., ::2, ::2]),
            self.attention(tokens, tokens, tokens),
        )


# FLOPs of its 24 tokens: to queries, keys and values, the two products of all
# pairs, and the output layer.
ATTENTION = 2 * 24 * 4 * 12 + 2 * 2 * 24 * 24 * 4 + 2 * 24 * 4 * 4


def test_rows_by_hand():
    rows = {
        row.name: row
        for row in profile(
            Net(), (4, 6), {'conv.weight': 0.25, 'head.weight': 0.5}
        ).rows
    }
    # 108 weights at 24 positions, of which 27 are active.
    flops = 2 * 108 * 24, 2 * 27 * 24
    memory = 432, 108, 4 * 4 * 24
    assert rows['conv'] == Row('conv', 'Conv2d', *flops, 108, 27, *memory)
    # 20 weights at 24 and at 6 positions; the bias of 5 stays whole.
    flops = 2 * 20 * 30, 2 * 10 * 30
    memory = 100, 60, 4 * 5 * 30
    assert rows['head'] == Row('head', 'Conv2d', *flops, 25, 15, *memory)
    # The output layer is not called as a module. What comes out are 4
    # channels and the weights of all pairs.
    memory = 240, 240, 4 * (24 * 4 + 24 * 24)
    assert rows['attention'].type == 'MultiheadAttention'
    found = rows['attention'].numbers
    assert found == (ATTENTION, ATTENTION, 60, 60, *memory)
    assert rows['attention.out_proj'].numbers == (0, 0, 20, 20, 80, 80, 0)
    assert rows['unused'].numbers == (0, 0, 9, 9, 36, 36, 0)
    # The activation gives back what it gets, the network what others made.
    names = 'conv', 'head', 'attention', 'attention.out_proj', 'unused'
    assert tuple(rows) == names


def test_sums_by_hand():
    costs = profile(Net(), (4, 6), {'conv.weight': 0.25})
    flops = 5184 + 1200 + ATTENTION, 1296 + 1200 + ATTENTION
    weights = 108 + 25 + 80 + 9, 27 + 25 + 80 + 9
    memory = 888, 564, 384 + 600 + 4 * (24 * 4 + 24 * 24)
    assert costs.total() == Row('', '', *flops, *weights, *memory)
    assert costs.total('attention').parameters == 80
    parts = costs.parts()
    assert list(parts) == ['conv', 'head', 'attention', 'unused']
    assert parts['attention'] == costs.total('attention')
    assert costs.total('att').numbers == (0, 0, 0, 0, 0, 0, 0)
    mask = torch.arange(16).view(4, 4) < 12
    assert mask_densities({'a': mask}) == {'a': 0.75}


def check_sums(model, shape, **kwargs):
    """Check that the rows add up to the totals of count_flops."""
    count = count_flops(model, shape, **kwargs)
    total = profile(model, shape).total()
    assert total.flops_dense == total.flops_sparse == count.total > 0
    assert total.parameters == sum(p.numel() for p in model.parameters())
    half = {n: 0.5 for n, p in model.named_parameters() if p.ndim == 4}
    sparse = profile(model, shape, half).total()
    assert sparse.flops_sparse == pytest.approx(count.sparse(half), rel=1e-12)
    assert sparse.flops_sparse < 0.9 * total.flops_sparse
    return total


def test_resnet18_adds_up():
    # Known: 11,689,512 parameters.
    total = check_sums(torchvision.models.resnet18(), (224, 224))
    assert total.weight_bytes == 4 * total.parameters == 46_758_048
    # By hand, in values at 56 x 56 of one image: the stem's convolution and
    # norm are 64 x 4 each, pooling 64. A stage has four convolutions and
    # four norms, of 64, 32, 16 and 8 such; all but the first have a
    # convolution and a norm more in a shortcut.
    blocks = 8 * 64 + 10 * (32 + 16 + 8)
    values = (64 * 4 * 2 + 64 + blocks) * 56 * 56 + 512 + 1000
    assert total.activation_bytes == 4 * values


class Shared(nn.Module):
    """Two heads with one convolution, as RetinaNet's SepBN head has it."""

    def __init__(self):
        super().__init__()
        conv = nn.Conv2d(1, 2, 1, bias=False)
        self.heads = nn.ModuleList(
            nn.Sequential(conv, nn.BatchNorm2d(2)) for _ in range(2)
        )

    def forward(self, x):
        return [head(x) for head in self.heads]


def test_a_shared_layer_goes_by_its_first_name():
    model = Shared()
    masked = {'heads.0.0.weight': 0.5}
    assert list(masked) == [
        n for n, p in model.named_parameters() if p.ndim == 4
    ]
    count = count_flops(model, (3, 3), 1)
    assert count.of('heads.0.0.weight') == 2 * (2 * 2 * 9)
    assert count.sparse(masked) == count.total / 2 == 36
    row, *_ = profile(model, (3, 3), masked, 1).rows
    assert row.numbers == (72, 36, 2, 1, 8, 4, 4 * 2 * 2 * 9)


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x))


def test_a_tied_weight_counts_once_and_masks_both_layers():
    first, second = profile(Tied(), (3, 4), {'first.weight': 0.25}, 1).rows
    assert first.numbers == (96, 24, 16, 4, 64, 16, 48)
    assert second.numbers == (96, 24, 0, 0, 0, 0, 48)


class Borrowing(nn.Module):
    """A decoder that runs a layer of the head, as DETRs do."""

    class Decoder(nn.Module):
        def forward(self, x, layer):
            return layer(x) @ x.new_empty(4, 2)

    def __init__(self):
        super().__init__()
        self.decoder = self.Decoder()
        self.head = nn.Linear(4, 4)

    def forward(self, x):
        return self.decoder(x, self.head)


def test_a_layer_that_another_one_runs_counts_once():
    decoder, head = profile(Borrowing(), (3, 4), None, 1).rows
    assert (decoder.name, decoder.flops_dense) == ('decoder', 2 * 3 * 4 * 2)
    assert (head.name, head.flops_dense) == ('head', 2 * 3 * 4 * 4)


class Summing(nn.Module):
    """Network that returns a new tensor, a view and its input."""

    def __init__(self):
        super().__init__()
        self.flat = nn.Flatten()
        self.same = nn.Identity()

    def forward(self, x):
        return self.same(x), self.flat(x), {'sum': x + 1}


def test_only_new_memory_is_counted():
    (row,) = profile(Summing(), (3, 4)).rows
    assert (row.name, row.type) == ('', 'Summing')
    assert row.numbers == (0, 0, 0, 0, 0, 0, 4 * 3 * 3 * 4)
    assert list(profile(Summing(), (3, 4)).parts()) == ['']


def test_densities_of_another_model_are_refused():
    with pytest.raises(KeyError, match='other.weight'):
        profile(Net(), (4, 6), {'other.weight': 0.5})
