"""First masks that score the whole network, against sums by hand."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers.process_groups import run_ranks
from sift_mm.sparsity import (
    NM,
    SNIP,
    Block,
    GraSP,
    SparseTraining,
    SynFlow,
    Unstructured,
)
from sift_mm.sparsity.first_masks import draw_masks, spread
from sift_mm.sparsity.saved_state import check_counts


def linear(*rows):
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    layer.weight.data = torch.tensor(rows)
    return layer


def scores_of(initializer, model, *passes):
    parameters = dict(model.named_parameters())
    found = initializer.network_scores(model, parameters, passes, 0.5)
    return [score.tolist() for score in found.values()]


def test_snip_by_hand():
    # loss = w x = 1 * 2 - 3 * 5, whose gradient is x; then x = (4, 1).
    layer = linear([1.0, -3])
    passes = [
        lambda x=x: layer(torch.tensor(x)).sum() for x in ([2.0, 5], [4.0, 1])
    ]
    assert scores_of(SNIP(), layer, passes[0]) == [[[2, 15]]]
    assert scores_of(SNIP(), layer, *passes) == [[[3, 9]]]  # of the mean


def test_grasp_by_hand():
    layer = linear([1.0, -1, 4])
    x = torch.tensor([2.0, 1, 0])
    passes = [lambda: layer(x).square().sum() / 2]
    # loss = (w x)^2 / 2 at w x = 1: g = x, H = x x', H g = 5 x.
    assert scores_of(GraSP(), layer, passes[0]) == [[[10, -5, 0]]]


def test_synflow_by_hand():
    # R = 1' |V| |W| 1: the score of w_ij is |w_ij| times the sum of |V|'s
    # column i, that of v_ki |v_ki| times the sum of |W|'s row i.
    model = nn.Sequential(linear([1.0, -2], [3, 0]), linear([-5.0, 1]))
    ones = torch.ones(1, 2)
    found = scores_of(SynFlow(rounds=1), model, lambda: model(ones))
    assert found == [[[5, 10], [3, 0]], [[15, 3]]]
    # Two rounds at density 0.5: sqrt(0.5) of 6 weights is 4. The scores of
    # the last round are those without the two lowest, 3 of W and 3 of V tie
    # and stay, 0 goes.
    found = scores_of(SynFlow(rounds=2), model, lambda: model(ones))
    assert found == [[[5, 10], [3, 0]], [[15, 3]]]
    assert model[0].weight.tolist() == [[1, -2], [3, 0]]


def test_synflow_takes_magnitudes_where_a_norm_subtracts():
    # R = (|w_0| - |w_1|) 1, and the scores |w dR/dw|.
    layer = linear([1.0, -2], [4, 3])
    ones = torch.ones(1, 2)
    found = scores_of(
        SynFlow(rounds=1), layer, lambda: -layer(ones).diff(dim=1)
    )
    assert found == [[[1, 2], [4, 3]]]


def test_saved_masks_may_have_the_rounding_of_a_structure():
    # A structure moves the count of 8 filters by 4 at most, from 16 to 20.
    masks = dict(a=torch.arange(32).view(8, 4) < 20)
    check_counts(masks, dict(a=16), dict(a=2.0))
    masks['a'][5, 0] = True
    with pytest.raises(ValueError, match=r'1\.312 of the FLOPs'):
        check_counts(masks, dict(a=16), dict(a=2.0))


def test_one_threshold_spends_the_flops_of_the_counts():
    scores = dict(a=torch.tensor([9.0, 8, 1, 0]), b=torch.tensor([7.0, 6, 5]))
    # 2 weights of 1 FLOP and 1 of 4 have 6. The best k have 1, 2, 6, 10:
    # three weights; at 12 FLOPs three weights of b are nearer than two.
    fit = dict.fromkeys('ab', Unstructured())
    costs = dict(a=1.0, b=4.0)
    assert spread(scores, dict(a=2, b=1), costs, fit) == dict(a=2, b=1)
    assert spread(scores, dict(a=1, b=3), costs, fit) == dict(a=2, b=3)
    # A layer keeps one weight.
    costs = dict(a=1.0, b=1.0)
    assert spread(scores, dict(a=1, b=1), costs, fit) == dict(a=1, b=1)
    # NaN comes last, and equal scores are taken in the layers' order.
    scores = dict(a=torch.tensor([float('nan'), 1, 1]), b=torch.ones(3))
    assert spread(scores, dict(a=1, b=2), costs, fit) == dict(a=2, b=1)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, stride=4)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = F.dropout(self.norm(self.conv(x)).relu(), 0.5, self.training)
        return self.fc(self.deep(x).relu().mean((2, 3)))


INCLUDE = ['conv.weight', 'deep.weight']


def training(init, structure='Unstructured', seed=0, **more):
    torch.manual_seed(seed)
    model = Net()
    x, y = torch.randn(6, 3, 9, 9), torch.tensor([0, 1, 2, 3, 0, 1])

    def run():
        if init == 'SynFlow':
            return model(torch.ones(1, 3, 9, 9))
        return F.cross_entropy(model(x), y)

    return model, lambda: SparseTraining(
        model,
        torch.optim.SGD(model.parameters(), 0.1),
        dict(type='RigL', structure=structure),
        **dict(steps=200, sparsity=0.5, include=INCLUDE, init=init)
        | dict(first_pass=run)
        | more,
    )


@pytest.mark.parametrize('init', ['SNIP', 'GraSP', 'SynFlow'])
def test_plain_pytorch_draws_them_and_changes_nothing_else(init):
    model, start = training(init)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    python, numpy = random.getstate(), np.random.get_state()[1].tolist()
    state = torch.get_rng_state()
    sparse = start()
    assert torch.equal(state, torch.get_rng_state())
    assert random.getstate() == python
    assert np.random.get_state()[1].tolist() == numpy
    after = model.state_dict()
    for name, value in before.items():
        mask = sparse.masks[name] if name in sparse.masks else 1
        assert after[name].dtype == value.dtype
        assert torch.equal(after[name], value * mask)
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert all(p.grad is None for p in model.parameters())
    # A weight of the first layer runs at 81 places, one of the second at 4.
    counts = sparse.masks.counts()
    flops = counts['conv.weight'] * 81 + counts['deep.weight'] * 4
    budget = 108 * 81 + 288 * 4
    assert abs(flops - budget) <= 81 / 2 and counts['conv.weight'] != 108
    again = training(init)[1]().masks
    assert all(torch.equal(m, again[n]) for n, m in sparse.masks.items())


@pytest.mark.parametrize('init', ['SNIP', 'GraSP', 'SynFlow'])
def test_weights_of_half_precision_get_them(init):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    model.bfloat16()
    x = torch.ones(1, 6) if init == 'SynFlow' else torch.randn(5, 6)
    sparse = SparseTraining(
        model,
        torch.optim.SGD(model.parameters(), 0.1),
        steps=200,
        sparsity=0.75,
        include=['*.weight'],
        init=init,
        first_pass=lambda: model(x.bfloat16()).float().square().mean(),
    )
    # A weight of either layer costs the same.
    assert sum(sparse.masks.counts().values()) == (48 + 16) // 4
    assert model[0].weight.dtype == torch.bfloat16


def test_they_keep_a_structure_and_resume():
    model, start = training('SNIP', dict(type='Block', filters=2))
    sparse = start()
    masks = {n: m.flatten(1) for n, m in sparse.masks.items()}
    assert all(torch.equal(m[::2], m[1::2]) for m in masks.values())
    saved = model.state_dict(), sparse.state_dict()
    # Other weights give layers other counts, which are restored.
    model, start = training('SNIP', dict(type='Block', filters=2), seed=1)
    other = start()
    assert other.masks.counts() != sparse.masks.counts()
    model.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    assert all(torch.equal(other.masks[n], sparse.masks[n]) for n in masks)
    model, start = training(
        'SNIP', dict(type='Block', filters=2), sparsity=0.3
    )
    other = start()
    model.load_state_dict(saved[0])
    with pytest.raises(ValueError, match=r'0\.\d+ of the FLOPs'):
        other.load_state_dict(saved[1])
    # A structure of one density leaves nothing to spread.
    _, start = training('SNIP', 'NM', exclude=['conv.weight'])
    assert start().masks.counts() == {'deep.weight': 288}


@pytest.mark.parametrize(
    'init, options, words',
    [
        ('SNIP', dict(first_pass=None), "init='SNIP' .* first_pass"),
        ('TopK', dict(), 'first_pass is for init=SNIP'),
        ('SNIP', dict(distribution='ERK'), 'leave distribution out'),
        ('SNIP', dict(algorithm='GMP'), 'GMP changes densities'),
        (
            'SNIP',
            dict(first_pass=lambda: torch.zeros(1, requires_grad=True).sum()),
            "'SNIP' has no score for 2 of 2 layers, 'conv.weight' first",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(init, options, words):
    model, start = training(init)
    arguments = dict(
        algorithm='RigL', steps=200, sparsity=0.5, include=INCLUDE
    )
    arguments |= dict(init=init, first_pass=lambda: model(torch.ones(1)))
    with pytest.raises(ValueError, match=words):
        SparseTraining(
            model,
            torch.optim.SGD(model.parameters(), 0.1),
            **arguments | options,
        )


@pytest.mark.parametrize('init', ['SNIP', 'GraSP', 'SynFlow'])
@pytest.mark.parametrize(
    'returned', [None, 0.5, torch.tensor(0.5), torch.ones(2)]
)
def test_a_first_pass_without_loss_is_refused(init, returned):
    _, start = training(init, first_pass=lambda: returned)
    with pytest.raises(ValueError, match='first pass'):
        start()


def test_layers_behind_a_norm_of_zero_are_refused():
    model, start = training('SNIP')
    model.norm.weight.data.zero_()
    with pytest.raises(ValueError, match='of the backbone'):
        start()


def draw_on_rank(init):
    """Draw masks on a rank's own batch of one batch of four."""
    rank = torch.distributed.get_rank()
    return draw(init, slice(2 * rank, 2 * rank + 2))


def draw(init, part):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    x, y = torch.randn(4, 6), torch.randn(4, 2)
    parameters = {
        n: p for n, p in model.named_parameters() if n.endswith('weight')
    }
    masks = draw_masks(
        model,
        parameters,
        {'0.weight': 24, '2.weight': 8},
        init,
        0,
        dict.fromkeys(parameters, Unstructured()),
        [lambda: F.mse_loss(model(x[part]), y[part])],
        dict.fromkeys(parameters, 1.0),
    )
    return {n: m.clone() for n, m in masks.items()}


@pytest.mark.parametrize('init', [SNIP(), GraSP()], ids=['SNIP', 'GraSP'])
def test_ranks_score_the_mean_gradient_and_agree(init, tmp_path):
    first, second = run_ranks(draw_on_rank, tmp_path, init)
    whole = draw(init, slice(0, 4))
    for name, mask in whole.items():
        assert torch.equal(first[name], second[name])
        assert torch.equal(first[name], mask)
    assert sum(int(m.sum()) for m in whole.values()) == 32


def test_structures_refuse_layers():
    for layer, structure, words in [
        (nn.Conv2d(8, 8, 3, groups=8), Block(2), '1 filters of a group'),
        (nn.Conv2d(8, 8, 3, groups=8), NM(), '1 inputs, less than m=4'),
        (nn.ConvTranspose2d(8, 8, 3), Block(2), 'not filters but inputs'),
    ]:
        optimizer = torch.optim.SGD(layer.parameters(), 0.1)
        with pytest.raises(ValueError, match=words):
            SparseTraining(
                layer,
                optimizer,
                dict(type='SET', structure=structure),
                steps=9,
                sparsity=0.5,
                include=['weight'],
            )
