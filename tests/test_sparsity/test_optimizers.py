"""Optimizers keep to the masks, or are refused before they move a weight."""

import inspect
import re

import mmpretrain.engine.optimizers  # noqa: F401, registers its own
import pytest
import torch
from mmengine.registry import OPTIMIZERS as MMENGINE
from mmpretrain.registry import OPTIMIZERS as MMPRETRAIN
from torch import nn

from helpers.toy_runs import assert_same, toy_runner
from sift_mm.errors import UserTypeError
from sift_mm.sparsity import (
    Constant,
    MaskSet,
    MaskTrainer,
    RigL,
    UpdateSchedule,
)

DEVICES = ['cpu'] + ['cuda'] * torch.cuda.is_available()
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Those of torch are in MMEngine's registry, but one that it names anew.
KINDS = {
    kind.__name__: kind
    for registry in (MMENGINE, MMPRETRAIN)
    for kind in registry.module_dict.values()
    if kind is not torch.optim.Optimizer
}
del KINDS['ZeroRedundancyOptimizer']  # Wants a process group.
SWITCHES = [
    {},
    dict(foreach=True),
    dict(foreach=False),
    dict(fused=True),
    dict(capturable=True),
]
CASES = [
    pytest.param(name, switch, id='-'.join([name, *map(str, switch.items())]))
    for name, kind in KINDS.items()
    for switch in SWITCHES
    if switch.keys() <= inspect.signature(kind).parameters.keys()
]
# They take no step on these gradients, so that there is nothing to try.
UNTRIED = {'LBFGS', 'SparseAdam'}
# The sentence's words on each of them.
REFUSED = {
    'LBFGS': 'computes gradients within its steps',
    'Muon': 'moves weights outside the mask',
    'Rprop': "does not keep its 'step_size' at zero",
    'SparseAdam': 'cannot be tried before the first step .RuntimeError: Spar',
}


def build(kind, parameters, **options):
    """Build an optimizer with momentum and decay, where it has them."""
    known = inspect.signature(kind).parameters
    others = dict(momentum=0.9, weight_decay=0.01)
    others = {k: v for k, v in others.items() if k in known}
    return kind(parameters, **{'lr': 0.01, **others, **options})


def train(optimizer_of, shape=(6, 40), dtype=torch.float32, device='cpu'):
    """Return a half-masked parameter, its optimizer and trainer."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator).to(device, dtype)
    parameter = nn.Parameter(weight)
    mask = torch.rand(shape, generator=generator) < 0.5
    masks = MaskSet({'a': parameter}, {'a': mask})
    trainer = MaskTrainer(masks, RigL(), UpdateSchedule(3, 100), Constant(0.5))
    return parameter, optimizer_of([parameter]), trainer


def test_the_optimizers_of_torch_are_all_there():
    assert {
        kind
        for kind in vars(torch.optim).values()
        if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer)
    } == {k for k in KINDS.values() if k.__module__.startswith('torch.')} | {
        torch.optim.Optimizer
    }
    assert {'Lamb', 'LARS', 'Adan'} < KINDS.keys()


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('name, switch', CASES)
def test_accepted_and_zero_outside_or_refused(name, switch, dtype, device):
    weight, optimizer, trainer = train(
        lambda p: build(KINDS[name], p, **switch), dtype=dtype, device=device
    )
    before = weight.detach().clone()
    reason = REFUSED.get(name)
    if device == 'cpu' and switch.get('capturable'):
        reason = 'cannot be tried before the first step'  # None on the CPU.
    if name == 'SGD' and switch.get('fused') and dtype in DTYPES[1:]:
        if device == 'cpu':
            reason = "does not keep its 'momentum_buffer' at zero"
    try:
        trainer.enforce(optimizer)
    except UserTypeError as error:
        assert torch.equal(weight, before)
        if reason is None:
            # Its eps is zero in float16, so that 0 / 0 is added to a weight.
            assert dtype == torch.float16
            reason = 'or makes NaN of them'
        assert re.search(reason, str(error))
        return
    assert reason is None
    count = trainer.masks.counts()
    before = weight.detach().clone()
    generator = torch.Generator().manual_seed(1)
    first = trainer.masks['a'].clone()
    for _ in range(7):
        gradient = torch.randn(weight.shape, generator=generator)
        weight.grad = gradient.to(weight)
        trainer.step(optimizer, optimizer.step)
        assert trainer.masks.counts() == count
        outside = ~trainer.masks['a']
        assert not weight[outside].any()
        for key, slot in optimizer.state[weight].items():
            if torch.is_tensor(slot) and slot.shape == weight.shape:
                limit = 1.1e-8 if key == 'exp_inf' else 0
                assert (slot[outside].abs() <= limit).all(), key
    assert not torch.equal(first, trainer.masks['a'])
    assert not torch.equal(before, weight)


def mixing(kind, mix=torch.mean):
    """Return an optimizer that also moves weights by others' gradients."""

    class Mixing(kind):
        @torch.no_grad()
        def step(self, closure=None):
            super().step()
            for group in self.param_groups:
                for p in group['params']:
                    if p.grad is not None and group.get('mixes', True):
                        p.sub_(group['lr'] * mix(p.grad))

    return Mixing


@pytest.mark.parametrize('name', sorted(sorted(KINDS.keys() - UNTRIED)))
def test_each_of_them_is_refused_if_it_mixes(name):
    # So that none is let through because it could not be tried.
    weight, optimizer, trainer = train(
        lambda p: build(mixing(KINDS[name]), p, lr=0.0)
    )
    before = weight.detach().clone()
    with pytest.raises(TypeError, match='Mixing.* moves weights out'):
        trainer.enforce(optimizer)
    assert torch.equal(weight, before)


@pytest.mark.parametrize('dtype', DTYPES[:2])
@pytest.mark.parametrize('rate', [1e-12, torch.tensor(0.0)])
@pytest.mark.parametrize('shape', [(40,), (6, 40), (8, 4, 3, 3), (9, 5, 1, 1)])
@pytest.mark.parametrize(
    'mix',
    [
        lambda g: g.mean(0, keepdim=True),
        lambda g: g.mean(-1, keepdim=True) if g.shape[-1] > 1 else g.mean(),
        lambda g: g.roll(1, 0),
        lambda g: g.flip(0),
    ],
)
def test_whatever_the_mixing_shape_rate_and_type(mix, shape, rate, dtype):
    weight, optimizer, trainer = train(
        lambda p: mixing(torch.optim.SGD, mix)(p, lr=rate, foreach=False),
        shape,
        dtype,
    )
    before = weight.detach().clone()
    with pytest.raises(TypeError, match='moves weights outside the mask'):
        trainer.enforce(optimizer)
    assert torch.equal(weight, before)


def test_a_run_ends_before_its_first_step(tmp_path):
    optimizer = dict(type=mixing(torch.optim.SGD), lr=0.0)
    runner = toy_runner(tmp_path, {}, dict(optimizer=optimizer))
    with pytest.raises(TypeError, match="'hidden.weight', moves weights"):
        runner.train()
    assert runner.iter == 0
    # The weights are those of a run that was never started.
    before = toy_runner(tmp_path).model.state_dict()
    assert_same(runner.model.state_dict(), before)


def test_parameters_may_have_names():
    _, optimizer, trainer = train(
        lambda p: mixing(torch.optim.SGD)([('a', p[0])], lr=0.1)
    )
    with pytest.raises(TypeError, match='moves weights outside'):
        trainer.enforce(optimizer)


@pytest.mark.parametrize('mixes', ['a', 'b'])
def test_groups_are_tried_with_options_of_their_own(mixes):
    # Only what a mask is on matters: 'b' has none.
    parameters = {n: nn.Parameter(torch.randn(6, 6)) for n in 'ab'}
    optimizer = mixing(torch.optim.SGD)(
        [dict(params=[p], mixes=n == mixes) for n, p in parameters.items()],
        lr=0.1,
    )
    weight = parameters['a']
    masks = MaskSet({'a': weight}, {'a': torch.rand(6, 6) < 0.5})
    trainer = MaskTrainer(masks, RigL(), None, Constant(0.5))
    if mixes == 'a':
        with pytest.raises(TypeError, match='moves weights outside'):
            trainer.enforce(optimizer)
    else:
        trainer.enforce(optimizer)
        for p in parameters.values():
            p.grad = torch.randn(6, 6)
        trainer.step(optimizer, optimizer.step)


class Hiding(torch.optim.SGD):
    """Momentum where no mask update can clear it."""

    @torch.no_grad()
    def step(self, closure=None):
        self.hidden = getattr(self, 'hidden', {})
        for p in self.param_groups[0]['params']:
            buffer = self.hidden.setdefault(p, torch.zeros_like(p))
            p.sub_(buffer.mul_(0.9).add_(p.grad), alpha=0.1)


def test_slots_that_cannot_be_cleared_are_found_out():
    _, optimizer, trainer = train(lambda p: Hiding(p, lr=0.1))
    with pytest.raises(TypeError, match='Hiding.* moves weights outside'):
        trainer.enforce(optimizer)


class Noisy(torch.optim.SGD):
    """Draws from the global random state."""

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]['params']:
            p.sub_(p.grad * torch.rand_like(p))
            self.state[p]['drawn'] = True


def test_the_trial_leaves_no_trace():
    weight, optimizer, trainer = train(
        lambda p: Noisy([dict(params=p, initial_lr=0.0)], lr=torch.tensor(0.0))
    )
    for tensor in (weight, optimizer.param_groups[0]['lr']):
        tensor.requires_grad_(False)
    before, state = repr(optimizer.state_dict()), torch.get_rng_state()
    trainer.enforce(optimizer)
    assert torch.equal(torch.get_rng_state(), state)
    assert repr(optimizer.state_dict()) == before and weight.grad is None
    assert not optimizer.state


class Wrapper(torch.optim.Optimizer):
    """Cannot be made from its options."""

    def __init__(self, inner):
        super().__init__(inner.param_groups, {})
        self.inner = inner

    def step(self, closure=None):
        self.inner.step()


@pytest.mark.parametrize('mixes', [True, False])
def test_what_is_wrapped_is_tried_in_place_of_the_wrapper(mixes):
    kind = mixing(torch.optim.SGD) if mixes else torch.optim.SGD
    weight, optimizer, trainer = train(
        lambda p: Wrapper(kind(p, lr=0.1, momentum=0.9))
    )
    before = weight.detach().clone()
    if mixes:
        with pytest.raises(TypeError, match='Mixing.* moves weights outside'):
            trainer.enforce(optimizer)
        assert torch.equal(weight, before)
        return
    trainer.enforce(optimizer)
    trainer.guard(optimizer)
    for _ in range(3):  # An update clears the slots within.
        weight.grad = torch.randn(weight.shape)
        trainer.step(optimizer, optimizer.step)
    outside = ~trainer.masks['a']
    assert not weight[outside].any()
    assert not optimizer.inner.state[weight]['momentum_buffer'][outside].any()
    for each in (optimizer, optimizer.inner):
        with pytest.raises(RuntimeError, match='in its place'):
            each.step()
