"""Numbers of active weights that depend on the step."""

import copy
import warnings

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from helpers.mask_trainers import masked
from helpers.process_groups import run_ranks
from sift_mm.sparsity import (
    Constant,
    MaskOptions,
    SparseTraining,
    generator_for,
)

SHAPES = {'0.weight': (12, 16), '2.weight': (8, 12)}
STEPS, INTERVAL, END = 22, 3, 0.75
MOVING = [
    'GMP',
    'GraNet',
    dict(type='GraNet', initial=0.0),
    dict(type='MEST', soft=True),
]


def training(algorithm, ranks=1, optimizer=torch.optim.SGD, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 8))
    momentum = dict(momentum=0.9) if optimizer is torch.optim.SGD else {}
    optimizer = optimizer(model.parameters(), lr=0.02, **momentum)
    usual = dict(steps=STEPS, interval=INTERVAL, end=END, sparsity=0.8)
    options = usual | dict(execution='dense') | options
    sparse = masked(model, algorithm, optimizer, **options)
    return DistributedDataParallel(model) if ranks > 1 else model, sparse


def step(model, sparse, rank=0, ranks=1):
    generator = generator_for(0, sparse.trainer.steps, 'data')
    x = torch.randn(8, 16, generator=generator)[rank::ranks]
    sparse.optimizer.zero_grad()
    model(x).square().mean().backward()
    return sparse.step()


def test_the_counts_of_worked_out_steps():
    # A cubic from 100 of 100 to 20, in four updates: 20 + 80 (1 - u / 4)^3
    # is 53.75, 30, 21.25 and 20.
    counts = MaskOptions(algorithm='GMP', interval=2, end=0.8).count_schedule(
        {'a': (10, 10)}, {'a': 20}, 11
    )
    found = [counts.at(step)['a'] for step in range(12)]
    assert found == [100, 100, 54, 54, 30, 30, 21, 21, 20, 20, 20, 20]
    assert counts.mean_densities(11) == {'a': sum(found[:11]) / 1100}
    # Half dense, 50 to 20: 32.7, 23.75, 20.5.
    half = MaskOptions(algorithm='GraNet', interval=2, end=0.8)
    counts = half.count_schedule({'a': (10, 10)}, {'a': 20}, 11)
    found = [counts.at(step)['a'] for step in (0, 2, 4, 6, 8)]
    assert found == [50, 33, 24, 20, 20]
    # A layer that ends denser starts as dense as it ends.
    assert half.count_schedule({'a': (9,)}, {'a': 7}, 11).at(0) == {'a': 7}


@pytest.mark.parametrize('algorithm', MOVING)
def test_masks_have_the_counts_of_the_schedule(algorithm):
    model, sparse = training(algorithm)
    counts, found = sparse.trainer.counts, {n: 0 for n in SHAPES}
    for number in range(STEPS):
        now = sparse.masks.counts()
        assert now == counts.at(number)
        found = {n: found[n] + now[n] for n in now}
        step(model, sparse)
        for name, mask in sparse.masks.items():
            weight = model.get_parameter(name)
            assert not weight[~mask].any()
            slot = sparse.optimizer.state[weight]['momentum_buffer']
            assert not slot[~mask].any()
    assert sparse.masks.counts() == {'0.weight': 38, '2.weight': 19}
    assert sparse.masks.counts() == counts.at(100)
    # The mean density is that of the masks that each step used.
    mean = counts.mean_densities(STEPS)
    for name, mask in sparse.masks.items():
        assert mean[name] == found[name] / (STEPS * mask.numel())


def test_gmp_drops_the_least_and_nothing_comes_back():
    model, sparse = training('GMP')
    assert sparse.density == 1
    for _ in range(STEPS):
        before = {n: m.clone() for n, m in sparse.masks.items()}
        report = step(model, sparse)
        for name, mask in sparse.masks.items():
            assert not (mask & ~before[name]).any()
        if report is not None:
            assert report.moved == 0
    assert sparse.trainer.history.itop_rate() == 1


@pytest.mark.parametrize('value', [torch.inf, torch.nan])
def test_a_skipped_update_is_made_up_at_the_next_step(value):
    model, sparse = training('GMP', end=1.0, steps=INTERVAL)
    for _ in range(INTERVAL - 1):
        step(model, sparse)
    for _ in range(2):
        # Also where the last update of all is skipped, twice.
        model(torch.ones(1, 16)).sum().backward()
        model[0].bias.grad[0] = value
        # As a loss scaler does, this leaves the step out.
        sparse.trainer.step(sparse.optimizer, lambda: None)
        assert sparse.trainer.report.skipped
        assert sparse.density == 1
    resumed = copy.deepcopy((model.state_dict(), sparse.state_dict()))
    for parts in (model, sparse), training('GMP', end=1.0, steps=INTERVAL):
        parts[0].load_state_dict(resumed[0])
        parts[1].load_state_dict(resumed[1])
        assert step(*parts).step == INTERVAL + 2
        assert parts[1].masks.counts() == {'0.weight': 38, '2.weight': 19}
        assert step(*parts) is None


def everything(model, sparse):
    model = getattr(model, 'module', model)
    state = sparse.state_dict()
    parts = [model.state_dict(), state['masks'], state.get('momentum', {})]
    parts += sparse.optimizer.state_dict()['state'].values()
    return [t.clone() for part in parts for t in part.values()], state['steps']


@pytest.mark.parametrize(
    'at, optimizer', [(4, torch.optim.AdamW), (12, torch.optim.SGD)]
)
@pytest.mark.parametrize('algorithm', [*MOVING, 'SNFS', 'MEST', 'CHT'])
def test_a_resumed_run_is_the_same_bit_for_bit(algorithm, at, optimizer):
    model, sparse = training(algorithm, optimizer=optimizer)
    for _ in range(STEPS):
        if sparse.trainer.steps == at:
            saved = copy.deepcopy(
                [model.state_dict(), sparse.optimizer.state_dict()]
                + [sparse.state_dict()]
            )
        step(model, sparse)
    other, resumed = training(algorithm, optimizer=optimizer)
    other.load_state_dict(saved[0])
    resumed.optimizer.load_state_dict(saved[1])
    with warnings.catch_warnings(action='error'):
        resumed.load_state_dict(saved[2])
    while resumed.trainer.steps < STEPS:
        step(other, resumed)
    expected, found = everything(model, sparse), everything(other, resumed)
    assert found[1] == expected[1]
    assert all(map(torch.equal, found[0], expected[0]))


def rank_masks(algorithm):
    rank = distributed.get_rank()
    model, sparse = training(algorithm, ranks=2)
    for _ in range(STEPS):
        step(model, sparse, rank, 2)
    return everything(model, sparse)[0]


@pytest.mark.parametrize('algorithm', ['GMP', 'GraNet', 'SNFS', 'MEST'])
def test_two_processes_agree_bit_for_bit(algorithm, tmp_path):
    first, second = run_ranks(rank_masks, tmp_path, algorithm)
    assert all(map(torch.equal, first, second))


def rank_error():
    rank = distributed.get_rank()
    model, sparse = training(
        dict(type='GMP', initial=0.1 * rank), ranks=2, init='TopK'
    )
    # The first masks are given to both, so that only the plan differs.
    for mask in sparse.masks.values():
        mask.fill_(True)
    try:
        step(model, sparse, rank, 2)
    except RuntimeError as error:
        return str(error)


def test_ranks_with_another_schedule_are_told(tmp_path):
    for text in run_ranks(rank_error, tmp_path):
        assert 'one schedule' in text


@pytest.mark.parametrize(
    'changed', [dict(type='GMP', initial=0.5), 'RigL', 'GraNet']
)
def test_a_run_with_another_density_is_not_resumed(changed):
    model, sparse = training('GMP')
    for _ in range(4):
        step(model, sparse)
    other, resumed = training(changed)
    other.load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match='active weights and is to have'):
        resumed.load_state_dict(sparse.state_dict())


@pytest.mark.parametrize(
    'wrong',
    [
        {'0.weight': torch.zeros(2, 2)},
        {'1.weight': torch.zeros(8, 12)},
        {'0.weight': torch.full((12, 16), torch.nan)},
    ],
)
def test_a_foreign_mean_gradient_changes_nothing(wrong):
    model, sparse = training('SNFS')
    for _ in range(4):
        step(model, sparse)
    other, resumed = training('SNFS', seed=1)
    other.load_state_dict(model.state_dict())
    before = resumed.masks.counts(), everything(other, resumed)
    with pytest.raises(ValueError, match='mean gradient of'):
        resumed.load_state_dict(sparse.state_dict() | dict(momentum=wrong))
    after = resumed.masks.counts(), everything(other, resumed)
    assert after[0] == before[0] and after[1][1] == before[1][1] == 0
    assert all(map(torch.equal, after[1][0], before[1][0]))
    resumed.load_state_dict(sparse.state_dict())
    assert resumed.trainer.steps == 4


def test_what_cannot_change_its_density_is_refused():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 12), nn.Linear(12, 8))
    model[1].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    options = dict(steps=9, interval=3, sparsity=0.8, include=['*.weight'])
    with pytest.raises(ValueError, match="GMP .*'1.weight', which is frozen"):
        SparseTraining(model, optimizer, 'GMP', **options)
    SparseTraining(model, optimizer, 'RigL', **options)
    with pytest.warns(UserWarning, match='GMP starts at the final density'):
        training(dict(type='GMP', initial=0.8))
    # A layer frozen later keeps its mask, and the log says why.
    model, sparse = training('GMP')
    model[0].weight.requires_grad_(False)
    for _ in range(INTERVAL):
        report = step(model, sparse)
    assert "'0.weight', whose density is to change" in report.skipped


def test_a_soft_bound_needs_a_structure_of_several_densities():
    # With 3 of 4 the whole layer would be active between updates.
    rule = dict(type='MEST', structure=dict(type='NM', n=3, m=4))
    with pytest.raises(ValueError, match="'NM' has one density"):
        training(rule | dict(soft=True), sparsity=0.25)
    training(rule, sparsity=0.25)


def test_soft_bounds_follow_the_drop_fraction():
    counts = MaskOptions(
        algorithm=dict(type='MEST', soft=True),
        interval=2,
        end=1.0,
        drop_fraction=Constant(0.25),
    ).count_schedule({'a': (10, 10)}, {'a': 20}, 6)
    assert [counts.at(s)['a'] for s in range(0, 7, 2)] == [20, 25, 25, 20]
