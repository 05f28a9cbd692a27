import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from helpers.mask_trainers import (
    OPTIMIZERS,
    PLACEMENTS,
    mask_of,
    small,
    state_tensors,
)
from sift_mm.sparsity import (
    Constant,
    Cosine,
    MaskSet,
    MaskTrainer,
    RigL,
    UpdateSchedule,
)

INF, NAN = float('inf'), float('nan')


# What an update does, by hand ---------------------------------------------


@pytest.mark.parametrize('placement', PLACEMENTS)
@pytest.mark.parametrize('clip', [False, True])
def test_growth_goes_by_the_gradient_before_masking(placement, clip):
    # floor(0.4 * 3) = 1: the 3 goes, the position of gradient -7 comes.
    weight, optimizer, trainer = small(
        [5.0, 4.0, 3.0, 0.0, 0.0, 0.0], [1, 1, 1, 0, 0, 0], placement=placement
    )
    weight.grad = torch.tensor([0.0, 0.0, 0.0, 1.0, -7.0, 2.0])

    def run():
        if clip:
            # Whatever becomes of the gradient now, it has been seen.
            weight.grad.copy_(torch.tensor([0.0, 0.0, 0.0, 9.0, 0.0, 0.0]))
            weight.grad.mul_(0.0)
        optimizer.step()

    trainer.step(optimizer, run)
    assert mask_of(trainer) == [1, 1, 0, 0, 1, 0]
    assert weight.tolist() == [5.0, 4.0, 0.0, 0.0, 0.0, 0.0]


class Naive:
    """RigL under SGD with momentum and weight decay, in plain Python."""

    def __init__(self, weight, mask, placement, interval, fraction):
        self.weight = [
            w if m else 0.0 for w, m in zip(weight, mask, strict=True)
        ]
        self.mask, self.momentum = list(mask), [0.0] * len(mask)
        self.placement, self.interval = placement, interval
        self.fraction, self.steps = fraction, 0

    def update(self, gradient):
        active = [i for i, m in enumerate(self.mask) if m]
        k = int(self.fraction * len(active))
        active.sort(key=lambda i: abs(self.weight[i]))
        kept = active[k:]
        free = [i for i in range(len(self.mask)) if i not in kept]
        free.sort(key=lambda i: -abs(gradient[i]))
        for i in free:
            if i not in free[:k] or not self.mask[i]:
                self.weight[i] = self.momentum[i] = 0.0
        self.mask = [i in kept or i in free[:k] for i in range(len(self.mask))]

    def step(self, gradient):
        self.steps += 1
        due = self.steps % self.interval == 0
        if not (due and self.placement == 'replace_step'):
            for i, m in enumerate(self.mask):
                slope = gradient[i] * m + 0.01 * self.weight[i]
                self.momentum[i] = 0.9 * self.momentum[i] + slope
                self.weight[i] -= 0.05 * self.momentum[i]
        if due:
            self.update(gradient)


@pytest.mark.parametrize('placement', PLACEMENTS)
@pytest.mark.parametrize('seed', range(5))
def test_many_steps_against_plain_python(placement, seed):
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(24, dtype=torch.double, generator=generator)
    mask = torch.rand(24, generator=generator) < 0.4
    targets = torch.randn(30, 24, dtype=torch.double, generator=generator)
    weight = nn.Parameter(start.clone())
    trainer = MaskTrainer(
        MaskSet({'a': weight}, {'a': mask}),
        RigL(),
        UpdateSchedule(4, 30),
        Constant(0.4),
        placement=placement,
    )
    optimizer = OPTIMIZERS['momentum']([weight])
    trainer.enforce(optimizer)
    naive = Naive(start.tolist(), mask.tolist(), placement, 4, 0.4)
    for target in targets:
        naive.step(
            [w - t for w, t in zip(naive.weight, target.tolist(), strict=True)]
        )
        weight.grad = weight.detach() - target
        trainer.step(optimizer, optimizer.step)
        assert trainer.masks['a'].tolist() == naive.mask
        assert weight.tolist() == pytest.approx(naive.weight, rel=1e-10)
        buffer = optimizer.state[weight].get(
            'momentum_buffer', torch.zeros(24)
        )
        assert buffer.tolist() == pytest.approx(naive.momentum, rel=1e-10)
    assert not torch.equal(trainer.masks['a'], mask)


# What holds at every step -------------------------------------------------


def test_nan_outside_the_masks_does_no_harm_between_updates():
    weight, optimizer, trainer = small(
        [1.0, 1.0, 0.0], [1, 1, 0], 'momentum', interval=2
    )
    weight.grad = torch.tensor([1.0, 1.0, NAN])
    trainer.step(optimizer, optimizer.step)
    assert weight.isfinite().all() and weight[2] == 0
    assert trainer.report is None


def test_enforce_clears_what_a_dense_past_left():
    weight, optimizer, trainer = small(
        [1.0, 2.0, 3.0, 4.0], [1, 0, 1, 0], 'adamw'
    )
    weight.data.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    weight.grad = torch.tensor([1.0, 2.0, 3.0, 4.0])
    optimizer.step()
    trainer.enforce(optimizer)
    slots = state_tensors(optimizer, weight)
    assert slots['step'] == 1
    for tensor in (
        weight,
        slots['exp_avg'],
        slots['exp_avg_sq'],
        slots['max_exp_avg_sq'],
    ):
        assert [v != 0 for v in tensor.tolist()] == [True, False, True, False]


def test_a_step_without_update_takes_no_memory():
    # 16 MiB of gradient, and a piece of 4 MiB to widen masks in.
    parameter = nn.Parameter(torch.randn(1 << 11, 1 << 11))
    parameter.grad = torch.randn(1 << 11, 1 << 11)
    masks = MaskSet({'a': parameter}, {'a': torch.rand(2048, 2048) < 0.25})
    trainer = MaskTrainer(masks, RigL(), UpdateSchedule(100, 100), Cosine())
    masks.apply_()
    optimizer = OPTIMIZERS['momentum']([parameter])
    # The first step that moves a weight looks at the optimizer too.
    trainer.step(optimizer, optimizer.step)
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True
    ) as result:
        trainer.step(optimizer, lambda: None)
    taken = sum(max(0, e.self_cpu_memory_usage) for e in result.events())
    assert taken <= 4 << 20


# What must not move anything ----------------------------------------------


# Randomness and resuming --------------------------------------------------
