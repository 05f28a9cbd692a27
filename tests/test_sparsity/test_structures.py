import pytest
import torch
from torch import nn

from helpers.mask_trainers import masked
from sift_mm.sparsity import (
    NM,
    SET,
    STRUCTURES,
    Algorithm,
    Constant,
    FromWeights,
    LayerState,
    MaskSet,
    MaskTrainer,
    RigL,
    Static,
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


def test_rounding_is_said_and_weights_are_checked():
    # 28 of 96 weights: 5 for each of 6 filters is the nearest.
    rule = dict(type='RigL', structure='ConstantFanIn')
    with pytest.warns(UserWarning, match=r'FanIn.* 0\.29\d+ to 0\.3125'):
        masked(nn.Linear(16, 6), rule, sparsity=0.71)
    structure, weight = NM(), torch.randn(6, 8)
    mask = structure.first(weight, 24)
    pruned = weight * mask
    assert torch.equal(FromWeights().mask(pruned, 24, None, structure), mask)
    pruned[0, mask[0].nonzero()[0]] = 0  # by chance: its place is filled
    found = FromWeights().mask(pruned, 24, None, structure)
    assert found[pruned != 0].all() and found.sum() == 24
    assert structure.has(found)
    pruned = weight * top_mask(weight.abs(), 24, mask | ~mask)
    with pytest.raises(ValueError, match="not of structure='NM'"):
        FromWeights().mask(pruned, 24, None, structure)


def test_structures_have_names():
    known = {'Unstructured', 'NM', 'Block', 'ConstantFanIn'}
    assert known <= set(STRUCTURES.names)
    assert isinstance(Static('unstructured').structure, Unstructured)
    with pytest.raises(ValueError, match="Unknown mask structure '2:4'"):
        RigL(structure='2:4')
