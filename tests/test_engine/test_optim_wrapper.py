"""The optim wrappers: what happens between backward and the step."""

import copy
from functools import partial

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.optim import AmpOptimWrapper, OptimWrapper, OptimWrapperDict
from mmengine.optim.optimizer import amp_optimizer_wrapper
from torch import nn

from sift_mm.engine import SparseAmpOptimWrapper, SparseOptimWrapper
from sift_mm.engine.optim_wrapper import make_maskable
from sift_mm.sparsity import (
    Constant,
    MaskSet,
    MaskTrainer,
    RigL,
    UpdateSchedule,
)


def linear_and_masks(interval=None, fraction=0.5, **kwargs):
    """Build a layer of eight weights, the first four of them active."""
    model = nn.Linear(8, 1, bias=False)
    model.weight.data = torch.arange(1.0, 9.0).view(1, 8)
    masks = MaskSet(
        {'weight': model.weight}, {'weight': torch.arange(8).view(1, 8) < 4}
    )
    schedule = UpdateSchedule(interval, 10**6) if interval else None
    trainer = MaskTrainer(
        masks, RigL(), schedule, Constant(fraction), **kwargs
    )
    return model, masks, trainer


def test_without_masks_it_is_mmengines_wrapper():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    twin = copy.deepcopy(model)
    kwargs = dict(accumulative_counts=2)
    ours = SparseOptimWrapper(
        torch.optim.AdamW(model.parameters(), lr=0.01),
        clip_grad=dict(max_norm=0.1),
        **kwargs,
    )
    theirs = OptimWrapper(
        torch.optim.AdamW(twin.parameters(), lr=0.01),
        clip_grad=dict(max_norm=0.1),
        **kwargs,
    )
    for _ in range(6):
        x = torch.randn(5, 4)
        ours.update_params(model(x).square().mean())
        theirs.update_params(twin(x).square().mean())
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def attached(wrapper, trainer):
    """Attach the masks to the wrapper."""
    wrapper.mask_trainer = trainer
    trainer.enforce(wrapper.optimizer)
    return wrapper


@pytest.fixture
def amp(monkeypatch):
    """Build MMEngine's AMP wrapper on the CPU with a real loss scaler.

    Its constructor asks for an accelerator; nothing after it needs one.
    """
    monkeypatch.setattr(
        amp_optimizer_wrapper, 'is_cuda_available', lambda: True
    )

    def build(model, kind=SparseAmpOptimWrapper, **kwargs):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        wrapper = kind(optimizer=optimizer, **kwargs)
        wrapper.loss_scaler = torch.amp.GradScaler('cpu', init_scale=2.0**10)
        return wrapper

    return build


@pytest.mark.parametrize('placement', ['after_step', 'replace_step'])
def test_amp_trains_as_single_precision_does(amp, placement):
    states = []
    for kind in ('amp', 'plain'):
        torch.manual_seed(0)
        model, masks, trainer = linear_and_masks(
            interval=2, placement=placement
        )
        if kind == 'amp':
            wrapper = amp(model, clip_grad=dict(max_norm=1.0))
        else:
            wrapper = SparseOptimWrapper(
                torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
                clip_grad=dict(max_norm=1.0),
            )
        attached(wrapper, trainer)
        seen = []
        wrapper.before_step = partial(record_gradient, model, seen)
        for _ in range(8):
            x = torch.randn(5, 8)
            wrapper.update_params((model(x) - 1).square().mean())
        states.append((model.weight.detach(), masks['weight'], *seen))
    # Scales are powers of two, so that unscaling is exact.
    assert len(states[0]) == 10
    assert all(map(torch.equal, *states))


def record_gradient(model, seen):
    """Append the gradient of the model's weight."""
    seen.append(model.weight.grad.clone())


@pytest.mark.parametrize('placement', ['after_step', 'replace_step'])
@pytest.mark.parametrize('bad', [float('inf'), float('nan')])
@pytest.mark.parametrize('where', [0, 7])
def test_an_overflow_moves_nothing(amp, placement, bad, where):
    model, masks, trainer = linear_and_masks(interval=1, placement=placement)
    wrapper = attached(amp(model), trainer)
    weight, mask = model.weight.clone(), masks['weight'].clone()
    grad = torch.ones(1, 8)
    grad[0, where] = bad
    scale = wrapper.loss_scaler.get_scale()
    wrapper.update_params((model.weight * grad).sum())
    assert torch.equal(model.weight, weight)
    assert torch.equal(masks['weight'], mask)
    assert trainer.report.skipped
    assert wrapper.loss_scaler.get_scale() == scale / 2
    # The run goes on.
    wrapper.update_params((model.weight * torch.arange(8.0)).sum())
    assert not trainer.report.skipped
    assert not torch.equal(masks['weight'], mask)


class Counting(OptimWrapper):
    """A wrapper of somebody's, which takes MMEngine's step."""

    def zero_grad(self, **kwargs):
        self.zeroed = getattr(self, 'zeroed', 0) + 1
        super().zero_grad(**kwargs)


@pytest.mark.parametrize('kind', [OptimWrapper, Counting, SparseOptimWrapper])
def test_a_wrapper_becomes_maskable_and_clips_active_weights_only(kind):
    model, _, trainer = linear_and_masks()
    wrapper = kind(
        torch.optim.SGD(model.parameters(), lr=1.0),
        clip_grad=dict(max_norm=1.0),
        accumulative_counts=2,
    )
    assert make_maskable(wrapper) is wrapper
    assert isinstance(wrapper, kind)
    assert make_maskable(wrapper) is wrapper  # Once is enough.
    attached(wrapper, trainer)
    # The gradient is 2 everywhere: norm 2 * sqrt(4) = 4 under the mask,
    # 2 * sqrt(8) = 5.66 without.
    for _ in range(2):  # Two micro-batches.
        wrapper.update_params(2 * model.weight.sum())
    hub = MessageHub.get_current_instance()
    assert hub.get_scalar('train/grad_norm').current() == 4.0
    # Clipped to norm 1, each active weight moves by 1/2.
    expected = torch.tensor([[0.5, 1.5, 2.5, 3.5, 0, 0, 0, 0]])
    assert torch.allclose(model.weight, expected, atol=1e-5)
    assert getattr(wrapper, 'zeroed', 1) == 1


def test_a_plain_amp_wrapper_becomes_maskable(amp):
    model, masks, trainer = linear_and_masks(interval=1)
    wrapper = make_maskable(amp(model, AmpOptimWrapper))
    weight = model.weight.detach().clone()
    wrapper.update_params(model.weight.sum())  # No masks yet.
    assert torch.allclose(model.weight, weight - 0.1)
    attached(wrapper, trainer)
    before = masks['weight'].clone()
    wrapper.update_params((model.weight * float('inf')).sum())
    assert torch.equal(masks['weight'], before)
    wrapper.update_params((model.weight * torch.arange(8.0)).sum())
    assert not torch.equal(masks['weight'], before)
    assert not model.weight[~masks['weight']].any()


class OwnStep(OptimWrapper):
    def step(self, **kwargs):
        self.optimizer.step(**kwargs)


@pytest.mark.parametrize('kind', [OwnStep, OptimWrapperDict])
def test_a_wrapper_of_another_step_is_refused(kind):
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)
    wrapper = (
        kind(a=OptimWrapper(optimizer))
        if kind is OptimWrapperDict
        else kind(optimizer)
    )
    with pytest.raises(TypeError, match=kind.__name__):
        make_maskable(wrapper)
