import pytest
import torch

from sift_mm.sparsity import (
    STRUCTURES,
    Algorithm,
    LayerState,
    MaskSet,
    Random,
    RigL,
    Static,
    Structure,
    TopK,
    Unstructured,
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


@pytest.mark.parametrize('value', BAD)
def test_non_finite_weights_are_no_reason_to_lose_count(value):
    # All active ones go, and the two inactive ones of gradient come.
    new = update(
        RigL(),
        1.0,
        torch.tensor([1, 1, 0, 0]).bool(),
        torch.tensor([1.0, value, 0.0, 0.0]),
        torch.tensor([0.0, 0.0, 1.0, 2.0]),
    )
    assert new.int().tolist() == [0, 0, 1, 1]


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
    if growth is None:
        assert torch.equal(whole, mask)
        return
    k = growth.k
    assert k <= len(growth.scores.places) <= 2 * k + int(mask.sum())
    gradient.zero_()  # Nothing of it is held.
    state = LayerState(mask, after)
    assert torch.equal(RigL().exchange(state, growth), whole)


class Rows(Structure):
    """Whole rows of two: what a structure of blocks does."""

    def fit(self, shape, count):
        return count // 2 * 2

    def drop(self, score, mask, k):
        rows = score.sum(1).masked_fill(~mask[:, 0], -INF).topk(k // 2).indices
        new = mask.clone()
        new[rows] = False
        return new

    def grow(self, score, mask, k):
        rows = score.sum(1).masked_fill(mask[:, 0], -INF).topk(k // 2).indices
        new = mask.clone()
        new[rows] = True
        return new


@pytest.mark.parametrize('initializer', [Random(), TopK()])
def test_masks_stay_within_another_structure(initializer):
    weight = torch.nn.Parameter(torch.randn(10, 2))
    algorithm = RigL(structure=Rows())
    masks = MaskSet.draw(
        {'a': weight}, {'a': 9}, initializer, 0, algorithm.structure
    )
    mask = masks['a']
    for _ in range(5):
        assert mask.sum() == 8 and torch.equal(mask[:, 0], mask[:, 1])
        growth = algorithm.shortlist(
            mask, weight, torch.randn(10, 2), 0.5, None
        )
        mask = algorithm.exchange(mask, weight, growth, None)
        weight.data = torch.randn(10, 2) * mask
    assert not torch.equal(mask, masks['a'])


def test_structures_have_names():
    assert STRUCTURES.names == ['Unstructured']
    assert isinstance(Static('unstructured').structure, Unstructured)
    with pytest.raises(ValueError, match="Unknown mask structure '2:4'"):
        RigL(structure='2:4')
