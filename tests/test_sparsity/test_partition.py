import numpy as np
import pytest
import torch

from sift_mm.sparsity import (
    ALGORITHMS,
    Algorithm,
    RigL,
    elementwise,
    partition,
    top_mask,
)
from sift_mm.sparsity.partition import Elementwise

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# Large enough to be sampled, and not a multiple of any power of two.
LARGE = (1 << 19) + 4093
NAN, INF = float('nan'), float('inf')


def sorted_mask(score, k, allowed):
    """By a full sort: of equal scores the first, NaN and -inf last."""
    numbers = score.double().numpy().ravel().copy()
    numbers[np.isnan(numbers)] = -np.inf
    places = np.flatnonzero(allowed.numpy())
    order = np.argsort(-numbers[places], kind='stable')
    mask = np.zeros(numbers.size, bool)
    mask[places[order[:k]]] = True
    return torch.from_numpy(mask)


def check_top(score, k, allowed=None):
    if allowed is None:
        allowed = torch.ones(score.numel(), dtype=torch.bool)
    before = score.clone()
    found = top_mask(score, k, allowed)
    assert found.dtype == torch.bool and found.count_nonzero() == k
    assert torch.equal(found.cpu(), sorted_mask(score, k, allowed))
    assert torch.equal(score.nan_to_num(1e3), before.nan_to_num(1e3))


def counts_for(n):
    return sorted({0, 1, n // 100, n // 10, n // 2, n - 1, n} - {-1})


def test_by_hand():
    # Highest 3; of the two 2's the first; 9 is not allowed.
    score = torch.tensor([2.0, 9.0, 3.0, NAN, 2.0, -INF])
    allowed = torch.tensor([1, 0, 1, 1, 1, 1]).bool()
    for k, chosen in [
        (0, []),
        (1, [2]),
        (2, [0, 2]),
        (3, [0, 2, 4]),
        (4, [0, 2, 3, 4]),
        (5, [0, 2, 3, 4, 5]),
    ]:
        mask = top_mask(score, k, allowed)
        assert mask.nonzero()[:, 0].tolist() == chosen


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('shape', [(1,), (9,), (5, 7), (4, 3, 3, 3)])
def test_small_scores(shape, dtype):
    for seed in range(5):
        print(f'seed {seed}')
        generator = torch.Generator().manual_seed(seed)
        score = torch.randn(shape, generator=generator).to(dtype)
        for k in counts_for(score.numel()):
            check_top(score, k)


def test_positions_are_those_of_the_flattened_score():
    score = torch.empty(4, 3, 3, 3).to(memory_format=torch.channels_last)
    check_top(score.copy_(torch.randn(4, 3, 3, 3)), 20)


def rising(n):
    return torch.arange(n, dtype=torch.float32)


def every(stride, low, high):
    """High at every stride-th position: a sample sees only or none of it."""

    def make(n):
        score = torch.full((n,), low)
        score[::stride] = high
        return score

    return make


def needles(n):
    score = torch.full((n,), -torch.inf)
    score[torch.arange(40) * (n // 50) + 1] = rising(40)
    return score


# Scores that a sample of LARGE has one of.
STEP = 4 * round(LARGE ** (1 / 3))
ADVERSARIES = {
    'random': lambda n: torch.rand(n, generator=torch.Generator()),
    'rising': rising,
    'falling': lambda n: -rising(n),
    'constant': torch.zeros,
    'infinite': lambda n: torch.full((n,), torch.inf),
    'two values': lambda n: rising(n) % 2,
    'few values': lambda n: (rising(n) * 0.61803).fmod(1).mul(5).floor(),
    'sample sees the large': every(STEP, 0.0, 1.0),
    'sample sees the small': every(STEP, 1.0, 0.0),
    'period of twice the stride': lambda n: rising(n) % (2 * STEP),
    'needles': needles,
    'late': lambda n: (rising(n) > n - 1000).float() * rising(n),
    'masked': lambda n: torch.rand(n).masked_fill_(torch.rand(n) < 0.9, -1),
}


@pytest.mark.parametrize('name', ADVERSARIES)
def test_large_scores(name):
    score = ADVERSARIES[name](LARGE)
    for k in counts_for(LARGE):
        check_top(score, k)


@pytest.mark.parametrize('name', ['random', 'few values', 'constant'])
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('density', [0.1, 0.9])
def test_large_scores_of_which_some_are_allowed(name, dtype, density):
    score = ADVERSARIES[name](LARGE).to(dtype)
    score[::7], score[1::7] = NAN, -INF
    allowed = torch.rand(LARGE, generator=torch.Generator()) < density
    for share in (0.001, 0.3, 0.99):
        check_top(score, int(share * allowed.count_nonzero()), allowed)


@pytest.mark.parametrize('kernels', [True, False])
def test_a_sample_narrows_the_search(monkeypatch, kernels):
    # What the adversaries above are up against: without it, they would be
    # tests of NumPy. It is what is done where there are no kernels, too.
    if not kernels:
        monkeypatch.setattr(partition, 'can_divide', lambda mask: False)
    sizes = []
    chosen = partition.Undivided.flip_
    monkeypatch.setattr(
        partition.Undivided,
        'flip_',
        lambda self, *args: (
            sizes.append(len(self.values)) or chosen(self, *args)
        ),
    )
    check_top(ADVERSARIES['random'](LARGE), LARGE // 20)
    assert sizes == ([] if kernels else [LARGE])
    check_top(ADVERSARIES['constant'](LARGE), LARGE // 20)
    assert sizes[1:] == ([] if kernels else [LARGE])


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """What is done where no NumPy and no kernel can be."""
    monkeypatch.setattr(partition, '_array', lambda tensor: tensor)
    monkeypatch.setattr(partition, 'can_divide', lambda mask: False)


@pytest.mark.parametrize('name', ['random', 'few values', 'needles'])
def test_large_scores_without_kernels(name, as_on_a_gpu):
    allowed = torch.rand(LARGE, generator=torch.Generator()) < 0.5
    check_top(ADVERSARIES[name](LARGE), LARGE // 20, allowed)


@pytest.mark.parametrize('density', [0.1, 0.9])
def test_updates_without_kernels(density, as_on_a_gpu, monkeypatch):
    generator = torch.Generator().manual_seed(2)
    gradient, after = torch.randn(2, LARGE, generator=generator)
    mask = torch.rand(LARGE, generator=generator) < density
    masks = []
    for _ in range(2):
        growth = RigL().shortlist(mask, after, gradient, 0.3, None)
        masks.append(RigL().exchange(mask, after, growth, None))
        masks.append(RigL().update(mask, after, gradient, 0.3, None))
        monkeypatch.undo()  # and once with kernels
    for other in masks[1:]:
        assert torch.equal(masks[0], other)


@pytest.mark.parametrize('seed', range(3))
def test_the_choice_is_the_same_with_any_number_of_threads(seed):
    print(f'seed {seed}')
    generator = torch.Generator().manual_seed(seed)
    gradient = torch.randn(LARGE, generator=generator).bfloat16()
    mask = torch.rand(LARGE, generator=generator) < 0.3
    masks = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        masks.append(RigL().update(mask, gradient, gradient, 0.3, None))
    torch.set_num_threads(1)
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])


def test_scores_by_element_are_computed_in_pieces():
    sizes = []

    def score(values):
        sizes.append(values.numel())
        return values.abs()

    n = 3 * LARGE
    values = torch.randn(n, generator=torch.Generator().manual_seed(0))
    allowed = torch.ones(n, dtype=torch.bool)
    found = top_mask(Elementwise(score, values), 1000, allowed)
    assert torch.equal(found, sorted_mask(values.abs(), 1000, allowed))
    assert max(sizes) == 1 << 20


@pytest.mark.parametrize('name', ['Static', 'SET', 'RigL'])
def test_a_magnitude_is_what_the_score_says(name):
    # Kernels compute it, and call no method.
    algorithm = ALGORITHMS.build(name)
    weight, gradient = torch.randn(
        2, 3, 50, generator=torch.Generator().manual_seed(0)
    )
    drop = algorithm._scores(algorithm.drop_score, weight, None)
    assert torch.equal(drop[:].view(3, 50), algorithm.drop_score(weight, None))
    if algorithm.needs_gradient:
        arguments = weight, gradient, None
        grow = algorithm._scores(algorithm.growth_score, *arguments)
        assert torch.equal(
            grow[:].view(3, 50), algorithm.growth_score(*arguments)
        )


def test_an_overriding_score_sees_the_whole_layer():
    shapes = []

    class Whole(RigL):
        def growth_score(self, weight, gradient, generator):
            shapes.append(gradient.shape)
            return gradient.abs() / gradient.norm()

    class Piece(RigL):
        @elementwise
        def growth_score(self, weight, gradient, generator):
            shapes.append(gradient.shape)
            return -gradient

    mask = torch.arange(12).view(3, 4) < 4
    for kind in (Whole, Piece):
        kind().update(mask, torch.ones(3, 4), torch.ones(3, 4), 0.5, None)
    # Of the eight weights that were inactive, and the two that are now.
    assert shapes == [(3, 4), (10,)]
    assert isinstance(Whole(), Algorithm)


@pytest.mark.parametrize('kind', ['random', 'bfloat16', 'trained', 'zeros'])
@pytest.mark.parametrize('density, fraction', [(0.25, 0.3), (0.1, 0.01)])
def test_a_shortlist_of_a_large_layer(kind, density, fraction):
    # It gives what all scores give, whatever the optimizer's step did.
    generator = torch.Generator().manual_seed(1)
    gradient, after = torch.randn(2, LARGE, generator=generator)
    mask = torch.rand(LARGE, generator=generator) < density
    if kind == 'bfloat16':
        gradient, after = gradient.bfloat16(), after.bfloat16()
    if kind == 'trained':  # The active ones have the largest gradients.
        mask = top_mask(gradient.abs(), int(density * LARGE), ~mask | mask)
    if kind == 'zeros':
        gradient[::3] = 0
        gradient[1::3] = 0
    growth = RigL().shortlist(mask, after * 0, gradient, fraction, None)
    whole = RigL().update(mask, after, gradient, fraction, None)
    active, k = int(mask.count_nonzero()), growth.k
    assert len(growth.scores.places) <= 2 * k + active
    if kind == 'random' and fraction == 0.3:
        assert len(growth.scores.places) < LARGE // 12
    gradient.zero_()  # Nothing of it is held.
    assert torch.equal(RigL().exchange(mask, after, growth, None), whole)
