"""Weights grown late under Adam: how far they go, and that it is kept."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sift_mm.sparsity import (
    Constant,
    MaskSet,
    MaskTrainer,
    RigL,
    SparseTraining,
    UpdateSchedule,
)

LR = 0.01
SIZE = 40
INTERVAL = 6
DEVICES = ['cpu'] + ['cuda'] * torch.cuda.is_available()
ADAMS = {
    'adam': (torch.optim.Adam, {}),
    'adam with decay': (torch.optim.Adam, dict(weight_decay=0.3)),
    'adamw': (torch.optim.AdamW, dict(weight_decay=0)),
    'foreach': (torch.optim.AdamW, dict(weight_decay=0, foreach=True)),
    'fused': (torch.optim.AdamW, dict(weight_decay=0, fused=True)),
    'maximize': (torch.optim.Adam, dict(maximize=True, weight_decay=0.3)),
    'amsgrad': (torch.optim.AdamW, dict(weight_decay=0, amsgrad=True)),
    'betas': (torch.optim.Adam, dict(betas=(0.8, 0.95))),
}


def small(grown_steps, adam='adamw', late=0, device='cpu'):
    """A parameter of which 10 weights are active, and its trainer."""
    parameter = nn.Parameter(torch.ones(SIZE, 1, device=device))
    mask = (torch.arange(SIZE) < 10).view(SIZE, 1)
    masks = MaskSet({'a': parameter}, {'a': mask})
    kind, options = ADAMS[adam]
    optimizer = kind([parameter], LR, eps=1e-30, **options)
    trainer = MaskTrainer(
        masks,
        RigL(),
        UpdateSchedule(INTERVAL, 100),
        Constant(0.4),
        grown_steps=grown_steps,
    )
    trainer.enforce(optimizer)
    if late:
        # The count of steps alone matters.
        parameter.grad = torch.ones_like(parameter)
        trainer.step(optimizer, optimizer.step)
        trainer.steps = 0
        optimizer.state[parameter]['step'].fill_(late)
    return parameter, optimizer, trainer


def gradients(kind, step, generator):
    if kind == 'constant':
        values = torch.ones(SIZE, 1)
    elif kind == 'growing':
        values = torch.full((SIZE, 1), 3.0**step)
    elif kind == 'once':
        values = torch.full((SIZE, 1), float(step % INTERVAL == 1) + 1e-3)
    else:
        # Over eight orders of magnitude, with a sign.
        values = 10 ** (8 * torch.rand(SIZE, 1, generator=generator) - 4)
        values *= torch.randn(SIZE, 1, generator=generator).sign()
    # Other weights are grown at each update.
    values[10 + torch.randperm(SIZE - 10, generator=generator)[:8]] *= 1e5
    return values


def young_steps(grown_steps, adam, kind, late=0, clip=None, device='cpu'):
    """Steps of young weights, and Adam's own from there, both by lr."""
    weight, optimizer, trainer = small(grown_steps, adam, late, device)
    generator = torch.Generator().manual_seed(late)
    young = torch.zeros(SIZE, 1, dtype=torch.bool, device=device)
    found = []

    def run():
        if clip is not None:
            nn.utils.clip_grad_norm_([weight], clip)
        twin.grad = weight.grad.clone()
        twin_optimizer.step()
        optimizer.step()

    for step in range(1, 5 * INTERVAL):
        weight.grad = gradients(kind, step, generator).to(device)
        before, mask = weight.detach().clone(), trainer.masks['a'].clone()
        twin, twin_optimizer = copy.deepcopy((weight, optimizer))
        trainer.step(optimizer, run)
        # What the update dropped did not move, it went.
        still = young & trainer.masks['a']
        found.append(
            [(w.detach() - before)[still] / LR for w in (weight, twin)]
        )
        if trainer.report is not None:
            young = trainer.masks['a'] & ~mask
            assert young.any()
    return [torch.cat(steps) for steps in zip(*found, strict=True)]


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('late', [0, 3, 50, 5000])
@pytest.mark.parametrize('kind', ['constant', 'growing', 'once', 'any'])
@pytest.mark.parametrize('adam', ADAMS)
def test_a_step_of_a_young_weight_is_adams_or_the_learning_rate_if_less(
    adam, kind, late, device
):
    steps, free = young_steps('bounded', adam, kind, late, device=device)
    assert steps.any()
    assert float(steps.abs().max()) <= 1 + 1e-5
    torch.testing.assert_close(steps, free.clamp(-1, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('kind', ['constant', 'any'])
@pytest.mark.parametrize('adam', ['adamw', 'foreach', 'fused', 'maximize'])
def test_without_a_bound_they_go_further(adam, kind):
    steps, free = young_steps('free', adam, kind, 5000)
    assert torch.equal(steps, free)
    assert float(steps.abs().max()) > 3


def test_the_gradient_that_counts_is_the_clipped_one():
    steps, free = young_steps('bounded', 'adamw', 'any', 5000, clip=1e-2)
    assert float(free.abs().max()) > 2
    torch.testing.assert_close(steps, free.clamp(-1, 1), rtol=1e-5, atol=1e-6)


def test_under_a_constant_gradient_each_step_is_that_of_a_fresh_weight():
    weight, optimizer, trainer = small('bounded', late=5000)
    grown = slice(10, 14)
    for step in range(1, 2 * INTERVAL):
        weight.grad = torch.ones_like(weight)
        weight.grad[grown] = 2.0
        trainer.step(optimizer, optimizer.step)
        if step >= INTERVAL:
            expected = torch.full((4, 1), -(step - INTERVAL) * LR)
            torch.testing.assert_close(weight.detach()[grown], expected)


def test_weights_that_are_not_young_move_as_before():
    runs = {}
    for grown_steps in ('free', 'bounded'):
        weight, optimizer, trainer = small(grown_steps, late=5000)
        start = trainer.masks['a'].clone()
        for step in range(1, 2 * INTERVAL):
            generator = torch.Generator().manual_seed(step)
            weight.grad = torch.randn(SIZE, 1, generator=generator)
            trainer.step(optimizer, optimizer.step)
        runs[grown_steps] = weight.detach(), trainer.masks['a']
    (free, masks), (bounded, other) = runs.values()
    assert torch.equal(masks, other)
    old, young = masks & start, masks & ~start
    assert torch.equal(free[old], bounded[old]) and old.any()
    assert (free[young] != bounded[young]).all() and young.any()


# In a network --------------------------------------------------------------


def network(grown_steps='bounded', seed=0, **kwargs):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4)
    ).to(memory_format=torch.channels_last)
    # The second slot is slower by far, and soon: bounds are met.
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, betas=(0.5, 0.9))
    sparse = SparseTraining(
        model,
        optimizer,
        steps=40,
        interval=10,
        sparsity=0.7,
        include=['0.weight', '3.weight'],
        grown_steps=grown_steps,
        execution='dense',
        **kwargs,
    )
    return model, optimizer, sparse


def run(parts, steps):
    model, optimizer, sparse = parts
    for _ in range(steps):
        generator = torch.Generator().manual_seed(sparse.trainer.steps)
        images = torch.randn(8, 4, 6, 6, generator=generator)
        labels = torch.randint(4, (8,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        sparse.step(clip=1.0)


def all_of(parts):
    model, optimizer, sparse = parts
    tensors = list(model.state_dict().values()) + list(sparse.masks.values())
    for slots in optimizer.state.values():
        tensors += slots.values()
    return [tensor.clone() for tensor in tensors]


def test_a_run_resumed_while_weights_are_young_ends_as_the_whole_one():
    whole = network()
    run(whole, 23)
    states = [copy.deepcopy(part.state_dict()) for part in whole]
    run(whole, 12)
    resumed = network(seed=1)
    for part, state in zip(resumed, copy.deepcopy(states), strict=True):
        part.load_state_dict(state)
    run(resumed, 12)
    for a, b in zip(all_of(whole), all_of(resumed), strict=True):
        assert torch.equal(a, b)
    # It is the indices that do it: a state of before there were any loads.
    forgetful = network(seed=1)
    del states[2]['young'], states[2]['grown_steps']
    for part, state in zip(forgetful, states, strict=True):
        part.load_state_dict(state)
    run(forgetful, 12)
    assert not all(
        torch.equal(a, b)
        for a, b in zip(all_of(whole), all_of(forgetful), strict=True)
    )


def test_a_step_that_the_loss_scaler_leaves_out_changes_nothing():
    weight, optimizer, trainer = small('bounded', 'fused', late=5000)
    for _ in range(INTERVAL + 1):
        weight.grad = torch.ones_like(weight)
        weight.grad[10:14] = 2.0  # They are grown.
        trainer.step(optimizer, optimizer.step)
    before = [weight.detach().clone(), copy.deepcopy(optimizer.state[weight])]
    scaler = torch.amp.GradScaler('cpu')
    scaler.scale(torch.ones(()))
    weight.grad = torch.full_like(weight, math.inf)
    scaler.unscale_(optimizer)
    trainer.step(optimizer, lambda: scaler.step(optimizer))
    assert torch.equal(weight, before[0])
    for key, slot in optimizer.state[weight].items():
        assert torch.equal(slot, before[1][key]), key


def test_other_optimizers_and_words_are_refused():
    model = nn.Linear(8, 8)
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    kwargs = dict(steps=200, sparsity=0.5, include=['weight'])
    with pytest.raises(TypeError, match="'bounded' is for Adam .* is SGD; us"):
        SparseTraining(model, sgd, grown_steps='bounded', **kwargs)
    with pytest.raises(ValueError, match="'free', 'bounded'.*; got 'small'"):
        SparseTraining(model, sgd, grown_steps='small', **kwargs)
