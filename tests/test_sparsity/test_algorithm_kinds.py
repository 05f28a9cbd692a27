"""Each algorithm against an oracle of its own, or values worked out."""

import itertools
import math

import pytest
import torch
from torch import nn

from helpers.mask_trainers import masked
from sift_mm.errors import UserError
from sift_mm.sparsity import (
    ALGORITHMS,
    LayerState,
    generator_for,
)

SEEDS = range(4)


def layer(seed, shape=(12, 10), density=0.5, **more):
    """Return the state of a layer, with zeros outside the mask."""
    print(f'seed {seed}')
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape, generator=generator) < density
    weight = torch.randn(shape, generator=generator) * mask
    gradient = torch.randn(shape, generator=generator)
    return LayerState(
        mask,
        weight,
        gradient,
        generator=generator_for(seed, 1, 'a'),
        **more,
    )


def best(scores, k):
    return set(sorted(scores, key=scores.get, reverse=True)[:k])


@pytest.mark.parametrize('fraction', [0.0, 0.3, 1.0])
@pytest.mark.parametrize('algorithm', ['GMP', 'GraNet'])
@pytest.mark.parametrize('seed', SEEDS)
def test_pruning_with_and_without_regrowth(seed, algorithm, fraction):
    state = layer(seed, target=40, final=20)
    size = {i: w.abs() for i, w in enumerate(state.weight.view(-1))}
    active = {i: size[i] for i in size if state.mask.view(-1)[i]}
    assert len(active) > 40
    kept = best(active, 40)
    if algorithm == 'GraNet':
        kept = best({i: size[i] for i in kept}, 40 - int(fraction * 40))
        gradient = state.gradient.view(-1).abs()
        free = {i: gradient[i] for i in size if i not in kept}
        kept |= best(free, 40 - len(kept))
    new = ALGORITHMS.build(algorithm).update(state, fraction)
    assert set(new.view(-1).nonzero()[:, 0].tolist()) == kept


def test_mest_by_hand():
    # |w| + 2 |g| is 5, 4, 2, 7: a small weight stays that is still moving.
    state = LayerState(
        torch.tensor([1, 1, 1, 1, 0, 0]).bool(),
        torch.tensor([5.0, -2.0, 2.0, 1.0, 0.0, 0.0]),
        torch.tensor([0.0, 1.0, 0.0, -3.0, 0.0, 0.0]),
        generator=generator_for(0, 1, 'a'),
        target=4,
        final=4,
    )
    rule = ALGORITHMS.build(dict(type='MEST', lam=2.0))
    assert rule.drop_score(state).tolist()[:4] == [-5, -4, -2, -7]
    for fraction, kept in [(0.25, [0, 1, 3]), (0.5, [0, 3])]:
        new = rule.update(state, fraction)
        assert new[kept].all() and new.sum() == 4
    assert not rule.needs_gradient
    assert rule.training_flops(10, 90, 4, 1.0) == 30


@pytest.mark.parametrize('clip', [None, 1e-3])
def test_mest_reads_the_gradient_before_clipping_and_step(clip):
    layer = nn.Linear(8, 1, bias=False)
    layer.weight.data = torch.arange(1.0, 9).view(1, 8)
    # In its foreach form, Nesterov momentum is added to the gradient itself.
    options = dict(momentum=0.9, nesterov=True, foreach=True)
    optimizer = torch.optim.SGD(layer.parameters(), 1e-9, **options)
    drop = dict(type='Constant', initial=0.25)
    sparse = masked(layer, 'MEST', optimizer, init='TopK', drop_fraction=drop)
    for place, value in (5, 100.0), (4, 9.0):
        layer.weight.grad = torch.zeros(1, 8)
        layer.weight.grad[0, place] = value
        sparse.step(clip=clip)
    # |w| + |g| of the active weights is 5 + 9, 6, 7 and 8: the second goes.
    assert sparse.masks['weight'][0, [4, 5, 6, 7]].tolist() == [1, 0, 1, 1]


def test_a_factor_that_float32_cannot_hold_is_refused():
    with pytest.raises(UserError, match='lam is a number from 0 to 3e38'):
        ALGORITHMS.build(dict(type='MEST', lam=4e38))


def test_mest_with_a_soft_bound_drops_what_it_grew_on_top():
    rule = ALGORITHMS.build(dict(type='MEST', lam=0.0, soft=True))
    state = layer(0, target=70, final=50)
    assert state.mask.sum() < 70
    # All of the smallest go but 50, and 20 more are grown.
    ranked = state.weight.abs().where(state.mask, -1).view(-1)
    new = rule.update(state, 0.4)
    assert new.sum() == 70
    assert new.view(-1)[ranked.topk(50).indices].all()


def dense_momentum(optimizer, gradients, **options):
    """Return the first moment that an unmasked optimizer gets."""
    weight = nn.Parameter(torch.zeros_like(gradients[0]))
    plain = optimizer([weight], lr=1e-9, **options)
    for gradient in gradients:
        weight.grad = gradient.clone()
        plain.step()
    return next(
        plain.state[weight][name]
        for name in ('momentum_buffer', 'exp_avg')
        if name in plain.state[weight]
    )


@pytest.mark.parametrize(
    'optimizer, options',
    [
        (torch.optim.SGD, dict(momentum=0.8)),
        (torch.optim.AdamW, dict(betas=(0.7, 0.99), weight_decay=0.0)),
    ],
)
@pytest.mark.parametrize('placement', ['after_step', 'replace_step'])
def test_snfs_grows_by_the_momentum_of_a_dense_optimizer(
    optimizer, options, placement
):
    torch.manual_seed(0)
    model = nn.Linear(20, 10, bias=False)
    sparse = masked(
        model,
        'SNFS',
        optimizer(model.parameters(), lr=1e-9, **options),
        **dict(steps=40, interval=4, end=0.2, sparsity=0.7),
        drop_fraction=dict(type='Constant', initial=0.3),
        placement=placement,
    )
    gradients = list(torch.randn(8, 10, 20))
    for number, gradient in enumerate(gradients, 1):
        before = sparse.masks['weight'].clone()
        assert sparse.trainer.needs_dense_gradient
        model.weight.grad = gradient.clone()
        sparse.step()
        if number % 4:
            continue
        moment = dense_momentum(optimizer, gradients[:number], **options).abs()
        grown = sparse.masks['weight'] & ~before
        assert grown.sum() > 0
        free = ~sparse.masks['weight']
        assert moment[grown].min() >= moment[free].max()
    assert not sparse.trainer.needs_dense_gradient
    model.weight.grad = gradients[0].clone()
    sparse.step()
    assert 'momentum' not in sparse.state_dict()  # Its memory is free again.


def test_snfs_needs_momentum():
    with pytest.raises(ValueError, match='SGD has none: set momentum=0.9'):
        masked(nn.Linear(20, 10), 'SNFS')


def test_snfs_pays_for_a_dense_gradient_in_each_step():
    # Half of the training at 2 * 10 + 90, half at 30.
    assert ALGORITHMS.build('SNFS').training_flops(10, 90, 4, 0.5) == 70


def ch3_l3(links, u, v):
    """Sum over paths u - b - a - v, by the definition on sets."""
    rows, columns = range(links.shape[0]), range(links.shape[1])
    paths = [
        (a, b)
        for a, b in itertools.product(rows, columns)
        if links[u, b] and links[a, b] and links[a, v]
    ]
    on_paths_a = {a for a, _ in paths} | {u}
    on_paths_b = {b for _, b in paths} | {v}
    total = 0.0
    for a, b in paths:
        outside_a = {c for c in columns if links[a, c]} - on_paths_b
        outside_b = {r for r in rows if links[r, b]} - on_paths_a
        total += 1 / math.sqrt((1 + len(outside_a)) * (1 + len(outside_b)))
    return total


@pytest.mark.parametrize('density', [0.1, 0.3, 0.6])
@pytest.mark.parametrize('seed', SEEDS)
def test_cht_scores_links_by_their_paths(seed, density):
    state = layer(seed, (7, 9), density)
    score = ALGORITHMS.build('CHT').growth_score(state)
    for u, v in (~state.mask).nonzero().tolist():
        expected = ch3_l3(state.mask, u, v)
        if expected:
            assert score[u, v] == pytest.approx(expected, rel=1e-5)
        else:
            assert -1 <= score[u, v] < 0


@pytest.mark.parametrize('seed', SEEDS)
def test_cht_grows_by_what_the_drop_leaves(seed):
    state = layer(seed, (9, 8), 0.4)
    rule = ALGORITHMS.build('CHT')
    k = int(0.3 * int(state.mask.sum()) + 1e-9)
    kept = rule.structure.drop(-state.weight.abs(), state.mask, k)
    scores = {
        (u, v): ch3_l3(kept, u, v) for u, v in (~kept).nonzero().tolist()
    }
    new = rule.update(state, 0.3) & ~kept
    grown = {tuple(place) for place in new.nonzero().tolist()}
    assert len(grown) == k
    rest = [s for p, s in scores.items() if p not in grown]
    assert min(scores[p] for p in grown) >= max(rest) - 1e-6


def test_cht_is_for_linear_layers():
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Linear(4, 4))
    with pytest.raises(ValueError, match="CHT .* '0.weight' has the shape"):
        masked(model, 'CHT')
