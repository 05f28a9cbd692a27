"""A mask update happens as a whole or not at all."""

import copy
import itertools
import sys
from functools import cache
from unittest import mock

import pytest
import torch
from torch import nn

from helpers.mask_trainers import masked
from sift_mm.sparsity import (
    algorithms,
    structures,
    trainer,
    updates,
)

UPDATE = 2


@pytest.fixture(autouse=True)
def untried(monkeypatch):
    """Leave out the optimizer's trial, which takes most of the time."""
    monkeypatch.setattr(trainer, 'check_optimizer', lambda *_: None)


def started():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 4))
    optimizer = torch.optim.AdamW(model.parameters(), 0.05)
    options = dict(interval=UPDATE, drop_fraction=0.5, execution='dense')
    sparse = masked(model, optimizer=optimizer, steps=40, **options)
    backward(model, sparse)
    sparse.step()
    backward(model, sparse)
    return model, sparse


def backward(model, sparse):
    torch.manual_seed(sparse.trainer.steps)
    model.zero_grad()
    model(torch.randn(6, 8)).square().sum(1).mean().backward()


def state(model, sparse):
    """Return all that an update moves: masks, history, steps and zeros."""
    zeros = {}
    for name, mask in sparse.masks.items():
        parameter = model.get_parameter(name)
        slots = sparse.optimizer.state[parameter]
        for key, tensor in [('weight', parameter), *slots.items()]:
            if tensor.shape == mask.shape:
                zeros[f'{name}/{key}'] = tensor.detach() != 0
    history = sparse.trainer.history.state_dict()
    return copy.deepcopy(
        [dict(sparse.masks), zeros, history, sparse.trainer.steps]
    )


def same(first, second):
    return all(
        a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
        for a, b in zip(
            [*first[:2], *first[2].values()],
            [*second[:2], *second[2].values()],
            strict=True,
        )
    ) and (first[3] == second[3])


@cache
def outcomes():
    """Return the states of a run with the optimizer's step alone, and all."""
    model, sparse = started()
    # Leaves the masks as they are.
    with mock.patch.object(updates.MaskUpdate, 'plan', lambda _: None):
        sparse.step()
    sparse.trainer.steps -= 1
    without = state(model, sparse)
    model, sparse = started()
    sparse.step()
    whole = state(model, sparse)
    assert not same(without, whole)
    return without, whole


def check_whole_or_not(model, sparse, without, whole):
    found = state(model, sparse)
    if found[3] == UPDATE - 1:
        # The optimizer may have been reached or not: zeros are of either.
        assert all(torch.equal(found[0][n], without[0][n]) for n in found[0])
        for name, mask in found[0].items():
            weight = model.get_parameter(name)
            assert not weight[~mask].any() and weight[mask].all()
        assert same(
            [*found[:1], {}, *found[2:]], [*without[:1], {}, *without[2:]]
        )
    else:
        assert same(found, whole)


class At:
    """Tracer that raises at the n-th call, or line of an update."""

    def __init__(self, number, error):
        self.number, self.error, self.seen = number, error, 0

    def __call__(self, frame, event, argument):
        file = frame.f_code.co_filename
        if 'sift_mm/' not in file:
            return None
        self.seen += 1
        if self.seen == self.number:
            sys.settrace(None)
            raise self.error
        lines = trainer.__file__, updates.__file__
        return self if file in lines else None

    def run(self, function):
        before = sys.gettrace()
        try:
            sys.settrace(self)
            function()
        except type(self.error):
            pass
        finally:
            sys.settrace(before)


def test_ctrl_c_at_any_line_of_a_step():
    without, whole = outcomes()
    results = set()
    first = 1 + torch.seed() % 5
    print(f'every fifth event from {first} on')
    for number in itertools.count(first, 5):
        model, sparse = started()
        at = At(number, KeyboardInterrupt())
        at.run(sparse.step)
        check_whole_or_not(model, sparse, without, whole)
        results.add(sparse.trainer.steps)
        if at.seen < number:
            break
        # The run goes on.
        backward(model, sparse)
        sparse.step()
    assert number > 150 and results == {UPDATE - 1, UPDATE}


FUNCTIONS = [
    (algorithms.RigL, 'growth_score'),
    (algorithms.RigL, 'drop_score'),
    (algorithms.RigL, 'shortlist'),
    (algorithms.RigL, 'exchange'),
    (structures.Unstructured, 'drop'),
    (structures.Unstructured, 'grow'),
    (structures.Unstructured, 'shortlist'),
    (trainer.MaskHistory, 'after'),
    (updates.MaskUpdate, '_state'),
    (trainer, 'apply_mask_with_slots_'),
    (updates, 'count'),
    (updates, 'generator_for'),
    (updates, 'slots_of'),
]


@pytest.mark.parametrize('call', [1, 2, 3])
@pytest.mark.parametrize(
    'owner, name', FUNCTIONS, ids=[name for _, name in FUNCTIONS]
)
def test_an_error_in_any_function_of_an_update(owner, name, call, monkeypatch):
    without, whole = outcomes()
    model, sparse = started()
    original, calls = getattr(owner, name), itertools.count(1)

    def fail(*args, **kwargs):
        if next(calls) == call:
            raise MemoryError('no memory')
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, fail)
    try:
        sparse.step()
    except MemoryError:
        pass
    else:
        assert next(calls) <= call  # It is called less often.
    check_whole_or_not(model, sparse, without, whole)
    monkeypatch.undo()
    sparse.step()


def test_a_state_is_loaded_as_a_whole():
    model, sparse = started()
    sparse.step()
    loaded, whole = sparse.state_dict(), state(model, sparse)
    for number in itertools.count(1, 2):
        model, sparse = started()
        first = state(model, sparse)
        at = At(number, KeyboardInterrupt())
        at.run(lambda s=sparse: s.trainer.load_state_dict(loaded))
        found = state(model, sparse)
        of = whole if found[3] == UPDATE else first
        assert same([found[0], {}, *found[2:]], [of[0], {}, *of[2:]])
        if at.seen < number:
            break
    assert number > 20
