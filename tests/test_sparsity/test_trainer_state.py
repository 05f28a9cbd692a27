"""Steps that move no mask, random draws, and the state of a trainer."""

import copy

import pytest
import torch
from torch import nn

from helpers.mask_trainers import (
    OPTIMIZERS,
    PLACEMENTS,
    Run,
    assert_same,
    mask_of,
    small,
)
from sift_mm.sparsity import (
    SET,
    Constant,
    MaskSet,
    MaskTrainer,
    RigL,
    Static,
    UpdateSchedule,
)

INF, NAN = float('inf'), float('nan')


@pytest.mark.parametrize('placement', PLACEMENTS)
@pytest.mark.parametrize('value', [INF, -INF, NAN])
@pytest.mark.parametrize('where', ['inside', 'outside', 'a dense parameter'])
def test_an_overflowed_step_moves_nothing(where, value, placement):
    run = Run('adamw', placement=placement)
    for _ in range(5):
        run.step()
    run.backward()
    mask = run.trainer.masks['conv1.weight']
    gradient = run.model.conv1.weight.grad
    if where == 'a dense parameter':
        run.model.norm.bias.grad[3] = value
    else:
        spot = (mask if where == 'inside' else ~mask).nonzero()[0]
        gradient[tuple(spot)] = value
    before, calls = run.state(), []
    # As a loss scaler does, run() leaves the step out.
    run.trainer.step(run.optimizer, lambda: calls.append(1))
    assert calls == [1]
    assert_same(run.state(), before)
    report = run.trainer.report
    assert report.skipped and report.step == 6 and report.moved == 0
    run.steps = 6
    # The next one goes ahead.
    for _ in range(3):
        run.step()
    assert not run.trainer.report.skipped and run.trainer.report.moved > 0


def test_an_update_without_any_gradient_moves_nothing():
    weight, optimizer, trainer = small(
        [1.0, 2.0, 0.0], [1, 1, 0], fraction=0.5
    )
    trainer.step(optimizer, optimizer.step)
    assert trainer.report.skipped == 'no parameter had a gradient'
    assert mask_of(trainer) == [1, 1, 0] and weight.tolist() == [1.0, 2.0, 0.0]


@pytest.mark.parametrize('placement', PLACEMENTS)
@pytest.mark.parametrize('algorithm', [SET(), RigL()])
def test_frozen_parameters_keep_their_masks(algorithm, placement):
    run = Run('sgd', algorithm, placement=placement, interval=2)
    # One frozen with an old gradient in hand, one that took no part.
    run.backward()
    run.model.conv1.weight.requires_grad_(False)
    before = run.masks()
    for _ in range(4):
        run.backward()
        run.model.conv1.weight.grad = torch.ones(6, 2, 3, 3)
        run.model.conv2.weight.grad = None
        run.trainer.step(run.optimizer, run.optimizer.step)
    after = run.masks()
    assert torch.equal(before['conv1.weight'], after['conv1.weight'])
    assert torch.equal(before['conv2.weight'], after['conv2.weight'])
    assert not torch.equal(before['fc.weight'], after['fc.weight'])
    run.check_outside_is_zero()
    # What is reported is of those that could move: floor(fraction * 10),
    # with a cosine's 0.375 at step 4 of 12.
    assert run.trainer.report.moved <= 0.3


@pytest.mark.parametrize(
    'algorithm, schedule',
    [(RigL(), None), (Static(), UpdateSchedule(1, 100)), (Static(), None)],
)
def test_masks_that_are_not_trained(algorithm, schedule):
    weight = nn.Parameter(torch.tensor([1.0, 2.0, 0.0]))
    masks = MaskSet({'a': weight}, {'a': torch.tensor([1, 1, 0]).bool()})
    trainer = MaskTrainer(masks, algorithm, schedule, Constant(0.5))
    optimizer = OPTIMIZERS['sgd']([weight])
    for _ in range(3):
        weight.grad = torch.tensor([1.0, 1.0, 9.0])
        trainer.step(optimizer, optimizer.step)
        assert trainer.report is None
    assert mask_of(trainer) == [1, 1, 0]
    assert weight.tolist() == pytest.approx([0.7, 1.7, 0.0])


def test_a_state_is_a_copy_and_loading_happens_in_place():
    run = Run()
    state = run.trainer.state_dict()
    held = copy.deepcopy(state)
    pointers = [m.data_ptr() for m in run.trainer.masks.values()]
    for _ in range(6):
        run.step()
    assert_same(state['masks'], held['masks'])
    assert_same(state['history']['ever'], held['history']['ever'])
    run.trainer.load_state_dict(state)
    assert [m.data_ptr() for m in run.trainer.masks.values()] == pointers
    assert_same(run.masks(), held['masks'])
    assert run.trainer.steps == 0


@pytest.mark.parametrize(
    'change, words',
    [
        (lambda s: s.update(version=2), 'version 2 .* up to 1; update'),
        (lambda s: s.pop('steps'), 'not the whole state.*: steps missing'),
        (lambda s: s.pop('masks'), 'not the whole state.*: masks missing'),
        (lambda s: s.pop('history'), 'ever, history missing'),
        (lambda s: s['history'].pop('ever'), 'ever missing'),
        (
            lambda s: s['masks'].update({'neck': s['masks'].pop('fc.weight')}),
            "'fc.weight'.*'neck'",
        ),
        (
            lambda s: s['history']['ever'].update(
                {'fc.weight': torch.zeros(1, dtype=torch.uint8)}
            ),
            'history .*names and sizes',
        ),
    ],
)
def test_a_state_that_does_not_fit_is_refused_whole(change, words):
    run, before = Run(), Run().masks()
    other = Run(seed=1)
    state = other.trainer.state_dict()
    change(state)
    with pytest.raises(ValueError, match=words):
        run.trainer.load_state_dict(state)
    assert_same(run.masks(), before)
