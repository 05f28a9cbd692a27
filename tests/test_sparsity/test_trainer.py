import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from sift_mm.sparsity import (
    SET,
    Constant,
    Cosine,
    MaskSet,
    MaskTrainer,
    Random,
    RigL,
    Static,
    UpdateSchedule,
)

PLACEMENTS = ['after_step', 'replace_step']
INF, NAN = float('inf'), float('nan')
OPTIMIZERS = {
    'sgd': lambda p: torch.optim.SGD(p, 0.1),
    'momentum': lambda p: torch.optim.SGD(
        p, 0.05, momentum=0.9, weight_decay=0.01
    ),
    'nesterov': lambda p: torch.optim.SGD(
        p, 0.05, momentum=0.9, weight_decay=0.01, nesterov=True
    ),
    'adam': lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.01),
    'adamw': lambda p: torch.optim.AdamW(
        p, 0.01, weight_decay=0.1, amsgrad=True
    ),
    'rmsprop': lambda p: torch.optim.RMSprop(
        p, 0.01, momentum=0.9, centered=True, weight_decay=0.01
    ),
}


def small(
    weight,
    mask,
    optimizer='sgd',
    algorithm=None,
    fraction=0.4,
    placement='after_step',
    interval=1,
):
    """Return a parameter, its optimizer and its trainer."""
    parameter = nn.Parameter(torch.tensor(weight))
    masks = MaskSet({'a': parameter}, {'a': torch.tensor(mask).bool()})
    masks.apply_()
    trainer = MaskTrainer(
        masks,
        algorithm or RigL(),
        UpdateSchedule(interval, 100),
        Constant(fraction),
        placement=placement,
    )
    return parameter, OPTIMIZERS[optimizer]([parameter]), trainer


def mask_of(trainer, name='a'):
    return trainer.masks[name].int().tolist()


def state_tensors(optimizer, parameter):
    """Return the tensors that an optimizer keeps of a parameter."""
    return {
        k: v
        for k, v in optimizer.state[parameter].items()
        if isinstance(v, torch.Tensor)
    }


class Net(nn.Module):
    """Two convolutions and a classifier; the norm's statistics are state."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.conv2(self.norm(self.conv1(x)).relu())
        return self.fc(x.mean((2, 3)))


SPARSE = ['conv1.weight', 'conv2.weight', 'fc.weight']


class Run:
    """A training run whose data depend on the step number alone."""

    def __init__(
        self,
        optimizer='momentum',
        algorithm=None,
        seed=0,
        placement='after_step',
        interval=3,
        end=12,
        prepare=lambda model: model,
    ):
        torch.manual_seed(0)
        self.model = prepare(Net())
        parameters = dict(self.model.named_parameters())
        sparse = {name: parameters[name] for name in SPARSE}
        masks = MaskSet.draw(
            sparse,
            {n: p.numel() // 4 for n, p in sparse.items()},
            Random(),
            seed,
        )
        self.optimizer = OPTIMIZERS[optimizer](parameters.values())
        self.trainer = MaskTrainer(
            masks,
            algorithm or RigL(),
            UpdateSchedule(interval, end),
            Cosine(0.5),
            seed,
            placement,
        )
        self.trainer.enforce(self.optimizer)
        self.steps = 0

    def backward(self):
        generator = torch.Generator().manual_seed(self.steps)
        weight = self.model.conv1.weight
        images = torch.randn(4, 2, 6, 6, generator=generator).to(weight)
        labels = torch.randint(5, (4,), generator=generator).to(weight.device)
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(images).float(), labels).backward()

    def step(self):
        self.backward()
        self.steps += 1
        self.trainer.step(self.optimizer, self.optimizer.step)

    def masks(self):
        return {n: m.clone() for n, m in self.trainer.masks.items()}

    def check_outside_is_zero(self):
        """Check that weights and slots outside the masks are +0."""
        for name, mask in self.trainer.masks.items():
            parameter = self.trainer.masks.parameters[name]
            slots = state_tensors(self.optimizer, parameter).values()
            for tensor in [parameter.detach(), *slots]:
                if tensor.shape == mask.shape:
                    outside = tensor[~mask]
                    assert not outside.any() and not outside.signbit().any()

    def state(self):
        """Return all that equal runs share, bit for bit."""
        tensors = {f'model/{k}': v for k, v in self.model.state_dict().items()}
        tensors |= {f'mask/{k}': v for k, v in self.trainer.masks.items()}
        for name, parameter in self.model.named_parameters():
            tensors |= {
                f'slot/{name}/{k}': v
                for k, v in state_tensors(self.optimizer, parameter).items()
            }
        return {k: v.detach().clone() for k, v in tensors.items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


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


@pytest.mark.parametrize(
    'placement, mask, weight_after, ran',
    [
        # The step makes 1 - 0.1 * 5 = 0.5 of the first, the smallest then.
        ('after_step', [0, 1, 1, 1], [0.0, 0.9, 5.0, 0.0], True),
        # Without a step the smallest is 0.9.
        ('replace_step', [1, 0, 1, 1], [1.0, 0.0, 5.0, 0.0], False),
    ],
)
def test_placement_of_the_update(placement, mask, weight_after, ran):
    weight, optimizer, trainer = small(
        [1.0, 0.9, 5.0, 0.0], [1, 1, 1, 0], placement=placement
    )
    weight.grad = torch.tensor([5.0, 0.0, 0.0, -9.0])
    calls = []
    trainer.step(optimizer, lambda: calls.append(optimizer.step()))
    assert bool(calls) == ran
    assert mask_of(trainer) == mask
    assert weight.tolist() == pytest.approx(weight_after)


def test_the_report():
    # floor(0.5 * 4) = 2: 1 and 2 go, gradients 9 and 8 come; the 1 is back.
    weight, optimizer, trainer = small(
        [1.0, 2.0, 3.0, 4.0, 0.0, 0.0],
        [1, 1, 1, 1, 0, 0],
        fraction=0.5,
        placement='replace_step',
        interval=2,
    )
    for expected in (None, (2, 0.5, 0.25), None):
        weight.grad = torch.tensor([8.0, 0.0, 0.0, 0.0, 9.0, 1.0])
        trainer.step(optimizer, lambda: None)
        report = trainer.report
        found = report and (report.step, report.drop_fraction, report.moved)
        assert found == expected
        assert report is None or report.skipped == ''
    assert mask_of(trainer) == [1, 0, 1, 1, 1, 0]
    # Five of six were active at some time, three at any time... and the
    # regrown one: its mask was never seen without it.
    assert trainer.history.itop_rate() == pytest.approx(5 / 6)
    assert trainer.history.degree_of_constraint() == pytest.approx(3 / 6)


def test_the_fraction_follows_the_schedule():
    # Cosine from 0.5 over 12 steps: 0.25 (1 + cos(pi t / 12)) at 3, 6, 9, 12
    # is 0.4268, 0.25, 0.0732 and 0.
    run, found = Run(), {}
    for _ in range(15):
        run.step()
        if run.trainer.report:
            found[run.trainer.report.step] = run.trainer.report.drop_fraction
    assert found == pytest.approx({3: 0.4267767, 6: 0.25, 9: 0.0732233, 12: 0})


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


@pytest.mark.parametrize('algorithm', [SET(), RigL()])
def test_memory_order_changes_nothing(algorithm):
    # The same gradients, by hand, as convolutions round differently.
    masks = []
    for layout in (torch.contiguous_format, torch.channels_last):
        run = Run(
            'momentum',
            algorithm,
            prepare=lambda m, f=layout: m.to(memory_format=f),
        )
        generator = torch.Generator().manual_seed(0)
        for _ in range(9):
            for parameter in run.model.parameters():
                parameter.grad = torch.empty_like(parameter).copy_(
                    torch.randn(parameter.shape, generator=generator)
                )
            run.trainer.step(run.optimizer, run.optimizer.step)
            run.check_outside_is_zero()
        masks.append(run.masks())
    assert_same(*masks)


def test_a_clipping_norm_counts_only_weights_that_exist():
    weight, optimizer, trainer = small([1.0, 1.0, 0.0], [1, 1, 0])
    weight.grad = torch.tensor([3.0, 4.0, 100.0])
    norms = []
    trainer.step(
        optimizer,
        lambda: norms.append(float(nn.utils.clip_grad_norm_([weight], 1e9))),
    )
    assert norms == pytest.approx([5.0])


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


# Randomness and resuming --------------------------------------------------


def test_draws_depend_on_seed_step_and_name():
    def grown(seed, steps, name):
        weight = nn.Parameter(torch.cat([torch.ones(50), torch.zeros(950)]))
        masks = MaskSet({name: weight}, {name: weight.detach() > 0})
        trainer = MaskTrainer(
            masks, SET(), UpdateSchedule(1, 100), Constant(1.0), seed
        )
        trainer.steps = steps
        weight.grad = torch.zeros(1000)
        trainer.step(OPTIMIZERS['sgd']([weight]), lambda: None)
        return tuple(trainer.masks[name].nonzero().flatten().tolist())

    keys = [(0, 0, 'a'), (1, 0, 'a'), (0, 1, 'a'), (0, 0, 'b')]
    draws = [grown(*key) for key in keys]
    assert len(set(draws)) == 4
    assert [grown(*key) for key in keys] == draws


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
