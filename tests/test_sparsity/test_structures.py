import copy

import pytest
import torch
from torch import nn

from helpers.structures import NofM, holds_groups, register
from sift_mm.sparsity import (
    SET,
    STRUCTURES,
    Algorithm,
    Constant,
    FromWeights,
    LayerState,
    MaskSet,
    MaskTrainer,
    Random,
    RigL,
    SparseTraining,
    Static,
    TopK,
    Unstructured,
    UpdateSchedule,
    top_mask,
)

NAN, INF = float('nan'), float('inf')
BAD = [NAN, INF, -INF, -5.0]


class Flat(Algorithm):
    """Every position scores the same."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def growth_score(self, layer):
        return torch.full_like(layer.weight, self.value)

    drop_score = growth_score


def update(algorithm, fraction, *tensors):
    return algorithm.update(LayerState(*tensors), fraction)


@pytest.mark.parametrize('value', BAD)
@pytest.mark.parametrize('fraction', [0.3, 1.0])
def test_counts_are_exact_whatever_the_scores_are(value, fraction):
    mask = torch.arange(20) < 8
    new = update(Flat(value), fraction, mask, torch.ones(20))
    assert new.sum() == 8 and (new & mask).sum() >= 8 - int(fraction * 8)


def test_negative_scores_are_ranked():
    # The 1 goes; of -9, -3 and -2 (its own), its own is best: it is back.
    class Scored(Algorithm):
        def growth_score(self, layer):
            return torch.tensor([-1.0, -2.0, -9.0, -3.0])

    mask = torch.tensor([1, 1, 0, 0]).bool()
    new = update(Scored(), 0.5, mask, torch.tensor([5.0, 1, 0, 0]))
    assert new.int().tolist() == [1, 1, 0, 0]


def test_a_drop_rule_is_one_method():
    class Largest(RigL):
        def drop_score(self, layer):
            return layer.weight.abs()

    new = update(
        Largest(),
        0.4,
        torch.tensor([1, 1, 1, 0]).bool(),
        torch.tensor([1.0, -9.0, 3.0, 0.0]),
        torch.tensor([0.0, 0.0, 0.0, 1.0]),
    )
    assert new.int().tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize('density', [0.05, 0.3, 0.8, 1.0])
@pytest.mark.parametrize('fraction', [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize('seed', range(4))
def test_a_shortlist_gives_what_all_scores_give(seed, fraction, density):
    # Weights change in between, as the optimizer steps.
    print(f'seed {seed}')
    torch.manual_seed(seed)
    mask = torch.zeros(400, dtype=torch.bool)
    mask[torch.randperm(400)[: int(density * 400)]] = True
    mask = mask.view(20, 20)
    gradient, after = torch.randn(2, 20, 20)
    growth = RigL().shortlist(
        LayerState(mask, torch.zeros(20, 20), gradient), fraction
    )
    whole = update(RigL(), fraction, mask, after, gradient)
    if growth.scores is None:
        assert torch.equal(whole, mask)
        return
    k = growth.k
    assert k <= len(growth.scores.places) <= 2 * k + int(mask.sum())
    gradient.zero_()  # Nothing of it is held.
    state = LayerState(mask, after)
    assert torch.equal(RigL().exchange(state, growth), whole)


@pytest.mark.parametrize('initializer', [Random(), TopK()])
@pytest.mark.parametrize('algorithm', [RigL, SET, Static])
def test_masks_stay_within_another_structure(initializer, algorithm):
    weight = nn.Parameter(torch.randn(10, 8, 3, 3))
    rule = algorithm(structure=NofM())
    masks = MaskSet.draw(
        {'a': weight}, {'a': 9}, initializer, 0, rule.structure
    )
    trainer = MaskTrainer(masks, rule, UpdateSchedule(1, 99), Constant(0.3))
    optimizer = torch.optim.SGD([weight], 0.1)
    trainer.enforce(optimizer)
    first = masks['a'].clone()
    for _ in range(5):
        assert holds_groups(masks['a'])
        weight.grad = torch.randn(weight.shape)
        trainer.step(optimizer, optimizer.step)
    assert torch.equal(masks['a'], first) == (algorithm is Static)


def test_a_structure_that_loses_count_is_told():
    class Losing(Unstructured):
        def grow(self, score, mask, k):
            return super().grow(score, mask, max(0, k - 1))

    weight = nn.Parameter(torch.randn(40))
    masks = MaskSet({'a': weight}, {'a': torch.arange(40) < 20})
    trainer = MaskTrainer(
        masks, SET(Losing()), UpdateSchedule(1, 99), Constant(0.5)
    )
    optimizer = torch.optim.SGD([weight], 0.1)
    trainer.enforce(optimizer)
    weight.grad = torch.randn(40)
    with pytest.raises(ValueError, match='.Losing. made 19 .* 20 are due'):
        trainer.step(optimizer, optimizer.step)
    assert masks.counts() == {'a': 20} and trainer.steps == 0


def two_of_four(**kwargs):
    """Return a layer trained within a 2:4 structure."""
    torch.manual_seed(0)
    model = nn.Linear(16, 6)
    options = dict(
        algorithm=dict(type='RigL', structure=dict(type='NofM', n=2)),
        steps=40,
        interval=2,
        sparsity=0.5,
        include=['weight'],
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    return model, SparseTraining(model, optimizer, **(options | kwargs))


def train(model, sparse, steps):
    for _ in range(steps):
        torch.manual_seed(sparse.trainer.steps)
        model.zero_grad()
        model(torch.randn(9, 16)).square().sum(1).mean().backward()
        sparse.step()


def test_plain_pytorch_resumes_within_its_structure_alone(monkeypatch):
    register(monkeypatch)
    model, sparse = two_of_four()
    train(model, sparse, 5)
    saved = [copy.deepcopy(part.state_dict()) for part in (model, sparse)]
    slots = copy.deepcopy(sparse.optimizer.state_dict())
    assert saved[1]['structure'] == dict(type='NofM', n=2, m=4)
    train(model, sparse, 6)
    again, resumed = two_of_four(seed=5)
    again.load_state_dict(saved[0])
    resumed.optimizer.load_state_dict(slots)
    resumed.load_state_dict(saved[1])
    train(again, resumed, 6)
    mask = sparse.masks['weight']
    assert holds_groups(mask) and torch.equal(mask, resumed.masks['weight'])
    assert torch.equal(model.weight, again.weight)
    for algorithm, there, here in [
        ('RigL', "NofM', n=2, m=4.", "'Unstructured'"),
        (dict(type='RigL', structure=NofM(1)), 'n=2, m=4', 'n=1, m=4'),
    ]:
        model, other = two_of_four(algorithm=algorithm)
        model.load_state_dict(saved[0])
        words = f'saved masks have structure=.*{there}.* of this run.*{here}'
        with pytest.raises(ValueError, match=words):
            other.load_state_dict(saved[1])
    # Masks that earlier releases saved have none.
    model, plain = two_of_four(algorithm='RigL')
    state = plain.state_dict()
    # SRigL takes no other structure: the saved run's algorithm is named.
    model, other = two_of_four(algorithm='SRigL')
    model.load_state_dict(model.state_dict())
    words = r"use that .* algorithm=dict\(type='RigL', structure='Unstruct"
    with pytest.raises(ValueError, match=words):
        other.load_state_dict(state)
    model, plain = two_of_four(algorithm='RigL')
    del state['structure']
    model.load_state_dict(model.state_dict())
    plain.load_state_dict(state | dict(grown_steps='free', young={}))


def test_rounding_is_said_and_weights_are_checked(monkeypatch):
    register(monkeypatch)
    with pytest.warns(
        UserWarning, match="'NofM' rounds .* 0.250000 to 0.500000"
    ):
        two_of_four(sparsity=0.75)
    structure, weight = NofM(), torch.randn(6, 8)
    mask = structure.first(weight, 24)
    pruned = weight * mask
    assert torch.equal(FromWeights().mask(pruned, 24, None, structure), mask)
    pruned[0, 0] = 0  # By chance; one in a thousand may be, at least one.
    found = FromWeights().mask(pruned, 24, None, structure)
    assert torch.equal(found, pruned != 0)
    pruned = weight * top_mask(weight.abs(), 24, mask | ~mask)
    with pytest.raises(ValueError, match="not of structure='NofM'"):
        FromWeights().mask(pruned, 24, None, structure)


def test_structures_have_names():
    known = {'Unstructured', 'NM', 'Block', 'ConstantFanIn'}
    assert known <= set(STRUCTURES.names)
    assert isinstance(Static('unstructured').structure, Unstructured)
    with pytest.raises(ValueError, match="Unknown mask structure '2:4'"):
        RigL(structure='2:4')
