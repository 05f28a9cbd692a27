"""Groups of layers with options of their own."""

import copy
import warnings

import pytest
import torch
from torch import nn

from helpers.process_groups import run_ranks
from sift_mm.errors import UserError
from sift_mm.sparsity import NM, MaskOptions, SparseTraining
from sift_mm.sparsity.saved_state import find_changes

GROUPS = {
    'a.*': dict(algorithm='Static'),
    'b.*': dict(algorithm=dict(type='SET', structure=NM(2, 4))),
    '*c.weight': dict(
        algorithm=dict(type='GMP', initial=0.5), sparsity=0.75, interval=3
    ),
    'd.*': dict(interval=4, end=0.5, drop_fraction=1.0),
}


class Net(nn.Module):
    """Five linear layers of 64 weights each."""

    def __init__(self):
        super().__init__()
        for name in 'abcde':
            self.add_module(name, nn.Linear(8, 8))

    def forward(self, x):
        for layer in self.children():
            x = x + layer(x).tanh()
        return x


def training(groups, seed=0, **more):
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    options = dict(sparsity=0.875, include=['*.weight'], end=1.0, interval=2)
    options |= dict(steps=12, seed=seed, groups=groups)
    return model, SparseTraining(model, optimizer, **(options | more))


def step(model, sparse):
    generator = torch.Generator().manual_seed(sparse.trainer.steps)
    x = torch.randn(16, 8, generator=generator)
    sparse.optimizer.zero_grad()
    (model(x) - x.flip(1)).square().mean().backward()
    sparse.step()


def masks(sparse):
    return {n[0]: mask.clone() for n, mask in sparse.masks.items()}


def test_each_layer_follows_its_group():
    model, sparse = training(GROUPS)
    first, counts, moved = masks(sparse), {}, {n: [] for n in 'abcde'}
    for number in range(1, 13):
        before = masks(sparse)
        step(model, sparse)
        after = masks(sparse)
        counts[number] = {n: int(mask.sum()) for n, mask in after.items()}
        for name in 'abcde':
            if not torch.equal(before[name], after[name]):
                moved[name].append(number)
        assert NM(2, 4).has(after['b'])
    # 8 of 64 weights at 0.875; two of four; GMP falls from 32 to 16 at the
    # steps 0, 3, ..., 12: 0.25 + 0.25 (1 - t / 12)^3 of 64.
    course = {0: 32, 3: 23, 6: 18, 9: 16, 12: 16}
    for number, found in counts.items():
        due = number // 3 * 3
        assert found == dict(a=8, b=32, c=course[due], d=8, e=8)
    assert int(first['c'].sum()) == 32
    assert moved['a'] == []
    assert set(moved['b']) <= {2, 4, 6, 8, 10, 12}
    assert moved['c'] == [3, 6, 9]
    assert moved['d'] == [4]  # At step 8 the cosine is 0.
    assert set(moved['e']) <= {2, 4, 6, 8, 10, 12}
    assert moved['b'] and moved['e']


def test_the_other_layers_are_as_without_groups():
    alone, grouped = training({}), training({'a.*': dict(algorithm='Static')})
    drawn = masks(alone[1])
    for name, mask in masks(grouped[1]).items():
        assert torch.equal(mask, drawn[name])
    # One update of equal gradients: only the group's mask stays.
    for pair in (alone, grouped):
        step(*pair)
        step(*pair)
    for name, mask in masks(grouped[1]).items():
        wanted = drawn if name == 'a' else masks(alone[1])
        assert torch.equal(mask, wanted[name])
    assert 'groups' not in alone[1].state_dict()


def test_a_resumed_run_goes_on_bit_for_bit():
    whole = training(GROUPS)
    for _ in range(5):
        step(*whole)
    saved = [copy.deepcopy(part.state_dict()) for part in whole]
    slots = copy.deepcopy(whole[1].optimizer.state_dict())
    model, sparse = training(GROUPS, seed=7)
    model.load_state_dict(saved[0])
    sparse.optimizer.load_state_dict(slots)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        sparse.load_state_dict(saved[1])
    for _ in range(7):
        step(*whole)
        step(model, sparse)
    for name, weight in whole[0].state_dict().items():
        assert torch.equal(weight, model.state_dict()[name])
    for name, mask in masks(whole[1]).items():
        assert torch.equal(mask, masks(sparse)[name])


def test_groups_of_all_layers_need_no_other_sparsity():
    halves = dict(algorithm=dict(type='RigL', structure='NM'))
    groups = {'[ab].*': halves, '*': dict(sparsity=0.75)}
    counts = training(groups, sparsity=None)[1].masks.counts().values()
    assert [*counts] == [32, 32, 16, 16, 16]
    with pytest.raises(UserError, match='No sparsity is given'):
        training({'a.*': halves}, sparsity=None)


@pytest.mark.parametrize(
    'groups, words',
    [
        ({}, "structure=.*NM.* for 'b.weight' .*type='SET', structure=.*n=2"),
        (
            GROUPS | {'*c.weight': dict(sparsity=0.5)},
            "'c.weight' has 23 active weights and is to have 32",
        ),
    ],
)
def test_a_run_with_other_groups_is_refused(groups, words):
    model, sparse = training(GROUPS)
    for _ in range(5):
        step(model, sparse)
    state = copy.deepcopy(sparse.state_dict())
    other, resumed = training(groups)
    other.load_state_dict(model.state_dict())
    with pytest.raises(UserError, match=words):
        resumed.load_state_dict(state)


def test_changed_options_of_groups_and_algorithms_are_found():
    mest = dict(type='MEST', lam=2.0)
    now = {'a.*': dict(interval=3), 'b.*': dict(algorithm='SET')}
    then = training({'[ad].*': dict(algorithm=mest)})[1].state_dict()
    found = find_changes(training(now)[1].state_dict(), then)
    assert found == [
        ('a.weight, d.weight: algorithm', 'MEST', 'RigL'),
        ('a.weight: interval', 2, 3),
        ('b.weight: algorithm', 'RigL', 'SET'),
    ]
    now, then = (
        training({}, algorithm=dict(mest, lam=lam))[1].state_dict()
        for lam in (1.0, 2.0)
    )
    before, after = ({'lam': lam, 'soft': False} for lam in (2.0, 1.0))
    assert find_changes(now, then) == [('algorithm_options', before, after)]


def train_on_rank(steps):
    """Train four steps, then with another group on one rank."""
    model, sparse = training(GROUPS)
    for _ in range(steps):
        step(model, sparse)
    rank = torch.distributed.get_rank()
    other = training(GROUPS | {'d.*': dict(interval=4 + rank)})
    with pytest.raises(RuntimeError, match='At step 1 the masks of rank 1'):
        step(*other)
    return masks(sparse)


def test_ranks_agree_and_notice_other_groups(tmp_path):
    first, second = run_ranks(train_on_rank, tmp_path, 4)
    for name, mask in first.items():
        assert torch.equal(mask, second[name])


@pytest.mark.parametrize(
    'groups, words',
    [
        ({'x.*': dict(interval=2)}, r"'x\.\*' matches no masked .* nearest"),
        (
            {'*': dict(interval=2), 'a.*': dict(interval=3)},
            r"before 'a\.\*' match all that it matches",
        ),
        ({'a.*': dict(intervall=2)}, r"\['a\.\*'\] has no .* mean interval\?"),
        ({'a.*': {}}, r"\['a\.\*'\] has no option; it takes algorithm"),
        (
            {'a.*': dict(algorithm='RigLL')},
            r"\['a\.\*'\]: algorithm is .*did you mean 'RigL'",
        ),
        (
            {
                'b.*': dict(
                    algorithm=dict(type='SET', structure='NM'), sparsity=0.9
                )
            },
            "'b.weight' .* leaves 0.5 of the weights or all",
        ),
        (
            {'a.*': dict(interval=13)},
            r"\['a\.\*'\]: .* update interval is 13 .* by step 12",
        ),
        ('a.*', 'groups is the options of some layers by glob pattern'),
    ],
)
def test_groups_that_cannot_be_are_refused(groups, words):
    with pytest.raises(UserError, match=words):
        training(groups)


def test_first_masks_of_scores_take_no_sparsity_of_a_group():
    with pytest.raises(UserError, match='leave the sparsity out of groups'):
        training({'a.*': dict(sparsity=0.5)}, init='SNIP')
    with pytest.raises(UserError, match="^init='SNIP' spreads"):  # No group's.
        training({'a.*': dict(end=0.5)}, init='SNIP', distribution='ERK')


def test_a_structure_is_named_with_the_algorithm():
    options = MaskOptions(algorithm=dict(type='SET', structure='NM'))
    words = "SET with structure=dict(type='NM', n=2, m=4)"
    assert options.name_algorithms(['a', 'b']) == words
    assert MaskOptions(algorithm='SET').name_algorithms(['a']) == 'SET'


def test_training_flops_add_up_over_groups():
    # Layers of 100 and 300 FLOPs, 50 beside them; densities 0.5 and 0.1.
    def cost(densities):
        one, two = densities.get('a', 1), densities.get('b', 1)
        return 50 + 100 * one + 300 * two

    found = MaskOptions(
        algorithm='Static', groups={'b': dict(algorithm='RigL', interval=9)}
    ).training_flops(cost, dict(a=0.5, b=0.1))
    # RigL: (3 x 30 x 9 + 2 x 30 + 300) / 10 = 117 until 0.75, then 90.
    assert found == pytest.approx(3 * 100 + 0.75 * 117 + 0.25 * 90)
