"""Properties of mask training for all shapes, types and settings."""

import copy
import io
import os
from typing import get_args

import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from sift_mm.sparsity import (
    ALGORITHMS,
    DROP_FRACTIONS,
    INITIALIZERS,
    STRUCTURES,
    MaskSet,
    MaskTrainer,
    UpdateSchedule,
)
from sift_mm.sparsity.counts import Assignment, CountSchedule
from sift_mm.sparsity.trainer import Placement

# Of this file, shared out evenly; `make attack` has more of them.
CASES = int(os.environ.get('SIFT_MM_CASES', 240))
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# The last update is due by the step before the last.
STEPS = 6
LAST = STEPS - 1


def property_of(*strategies):
    """Run a test on drawn cases; a failure prints how to repeat it."""

    def mark(test):
        return settings(
            max_examples=CASES // 3,
            deadline=None,
            database=None,
            print_blob=True,
            # Fixtures of all tests; none is of one case.
            suppress_health_check=list(HealthCheck),
        )(given(*strategies)(test))

    return mark


@st.composite
def settings_of_a_run(draw):
    """Draw the settings of a run as plain values."""
    algorithm = draw(st.sampled_from(ALGORITHMS.names))
    kinds = ['ConstantFanIn'] if algorithm == 'SRigL' else STRUCTURES.names
    structure = draw(st.sampled_from(kinds))
    most, least = (2 if algorithm == 'CHT' else 4), 1
    if algorithm == 'CHT' or structure != 'Unstructured':
        least = 2  # A linear layer, or one with filters.
    shapes = st.lists(st.integers(1, 7), min_size=least, max_size=most)
    drawn = draw(st.lists(shapes, min_size=1, max_size=2))
    rule = STRUCTURES.build(structure)
    assume(not any(rule.check(tuple(shape), 1) for shape in drawn))
    return dict(
        shapes=drawn,
        dtype=draw(st.sampled_from(DTYPES)),
        density=draw(st.floats(0, 1)),
        fraction=draw(st.floats(0, 1)),
        structure=structure,
        algorithm=algorithm,
        placement=draw(st.sampled_from(get_args(Placement))),
        drop=draw(st.sampled_from(DROP_FRACTIONS.names)),
        init=draw(st.sampled_from(['Random', 'TopK'])),
        optimizer=draw(st.sampled_from(['SGD', 'AdamW'])),
        interval=draw(st.integers(1, 3)),
        seed=draw(st.integers(0, 2**31)),
    )


def assign(case):
    """Return the algorithm and schedules of a case."""
    rule = dict(type=case['algorithm'], structure=case['structure'])
    drop = dict(type=case['drop'], initial=case['fraction'])
    algorithm = ALGORITHMS.build(rule)
    updates = UpdateSchedule(case['interval'], LAST)
    return Assignment(
        algorithm,
        updates if algorithm.dynamic else None,
        DROP_FRACTIONS.build(drop),
    )


class Run:
    """Some parameters whose gradients depend on seed and step alone.

    Those of a second case, if any, are a group.
    """

    def __init__(self, case, start=0, group=None):
        self.case, self.saved = case, None
        drawn = [
            (shape, each)
            for each in (case, group)
            if each
            for shape in each['shapes']
        ]
        dtype, seed = case['dtype'], case['seed']
        generator = torch.Generator().manual_seed(seed + start)
        self.parameters = {
            f'layer{i}': nn.Parameter(
                torch.randn(shape, generator=generator).to(dtype)
            )
            for i, (shape, _) in enumerate(drawn)
        }
        own = assign(case)
        self.algorithm = own.algorithm
        last = [*self.parameters][len(case['shapes']) :]
        groups = dict.fromkeys(last, assign(group)) if group else {}
        shapes = {n: tuple(p.shape) for n, p in self.parameters.items()}
        structures = {
            n: groups.get(n, own).algorithm.structure for n in shapes
        }
        final = {
            name: structures[name].fit(
                tuple(p.shape), max(1, round(each['density'] * p.numel()))
            )
            for (name, p), (_, each) in zip(
                self.parameters.items(), drawn, strict=True
            )
        }
        counts = CountSchedule(own, shapes, final, groups)
        masks = MaskSet.draw(
            self.parameters,
            counts.at(0),
            INITIALIZERS.build(case['init']),
            seed + start,
            structures,
        )
        kind, options = torch.optim.SGD, dict(momentum=0.9)
        if case['optimizer'] == 'AdamW':
            # The usual eps is zero in float16.
            kind, options = torch.optim.AdamW, dict(eps=1e-4)
        self.optimizer = kind(
            self.parameters.values(), lr=0.05, weight_decay=0.01, **options
        )
        self.trainer = MaskTrainer(
            masks,
            own.algorithm,
            own.updates,
            own.drop_fraction,
            seed + start,
            case['placement'],
            final,
            groups,
        )
        self.trainer.enforce(self.optimizer)

    def step(self):
        seed = (self.case['seed'] + 1) * 1000 + self.trainer.steps
        generator = torch.Generator().manual_seed(seed)
        for p in self.parameters.values():
            p.grad = torch.randn(p.shape, generator=generator).to(p)
        self.trainer.step(self.optimizer, self.optimizer.step)

    def slots(self, name):
        state = self.optimizer.state[self.parameters[name]]
        return {
            f'{name}/{k}': v for k, v in state.items() if torch.is_tensor(v)
        }

    def check(self):
        """Check exact counts, and +0 outside the masks."""
        trainer = self.trainer
        counts = trainer.counts.at(trainer.steps)
        assert trainer.masks.counts() == counts
        for name, mask in self.trainer.masks.items():
            weight = self.parameters[name].detach()
            for tensor in (weight, *self.slots(name).values()):
                if tensor.shape == mask.shape:
                    outside = tensor[~mask]
                    assert not outside.any() and not outside.signbit().any()

    def train(self, broken):
        """Run, check and save; yield each step and the masks before it."""
        for step in range(STEPS):
            if step == broken:
                self.saved = self.save()
            before = copy.deepcopy(dict(self.trainer.masks))
            self.step()
            self.check()
            yield step, before

    def save(self):
        file = io.BytesIO()
        state = (
            {n: p.detach() for n, p in self.parameters.items()},
            self.optimizer.state_dict(),
            self.trainer.state_dict(),
        )
        torch.save(state, file)
        file.seek(0)
        return torch.load(file, weights_only=True)

    def load(self, state):
        weights, optimizer, trainer = state
        for name, parameter in self.parameters.items():
            parameter.data.copy_(weights[name])
        self.optimizer.load_state_dict(optimizer)
        self.trainer.load_state_dict(trainer)
        self.trainer.enforce(self.optimizer)

    def everything(self):
        """Return all that equal runs share, bit for bit."""
        tensors = dict(self.parameters)
        for name, mask in self.trainer.masks.items():
            tensors |= {f'{name}/mask': mask} | self.slots(name)
        history = self.trainer.history.state_dict()
        for key in ('ever', 'always'):
            tensors |= {f'{n}/{key}': v for n, v in history[key].items()}
        return {
            k: (v.shape, v.dtype, v.detach().reshape(-1).view(torch.uint8))
            for k, v in tensors.items()
        }


def check_resuming(run, saved, case, broken, group=None):
    """Check that a run resumed from ``broken`` ends like the whole one."""
    # Another process, whose weights, masks and slots are others at first.
    resumed = Run(case, 1, group)
    resumed.step()
    resumed.load(saved)
    for _ in range(STEPS - broken):
        resumed.step()
    first, second = run.everything(), resumed.everything()
    assert first.keys() == second.keys()
    for key, (shape, dtype, found) in first.items():
        assert (shape, dtype) == second[key][:2], key
        assert torch.equal(found, second[key][2]), key


@property_of(settings_of_a_run(), st.integers(0, STEPS))
def test_counts_zeros_and_resuming(case, broken):
    run = Run(case)
    places = [mask.data_ptr() for mask in run.trainer.masks.values()]
    run.check()
    for step, before in run.train(broken):
        due = run.algorithm.dynamic and (step + 1) % case['interval'] == 0
        due = due and step < LAST
        assert (run.trainer.report is not None) == due
        for name, mask in run.trainer.masks.items():
            gone = int((before[name] & ~mask).sum())
            active = int(mask.sum())
            fewer = int(before[name].sum()) - active
            assert gone <= due * case['fraction'] * active + fewer + 1e-6
    check_resuming(run, run.saved or run.save(), case, broken)
    assert places == [m.data_ptr() for m in run.trainer.masks.values()]


@property_of(settings_of_a_run(), settings_of_a_run(), st.integers(0, STEPS))
def test_groups_have_exact_counts_and_resume(case, group, broken):
    run = Run(case, group=group)
    for step, before in run.train(broken):
        for name, mask in run.trainer.masks.items():
            own = group if name in run.trainer.counts.groups else case
            assert torch.equal(mask, before[name]) or (
                own['algorithm'] != 'Static'
                and (step + 1) % own['interval'] == 0
            )
    check_resuming(run, run.saved or run.save(), case, broken, group)


BAD = st.sampled_from([float('nan'), float('inf'), -float('inf')])


@property_of(
    settings_of_a_run(),
    st.lists(st.tuples(st.integers(0, 2**20), BAD), min_size=1, max_size=20),
)
def test_counts_are_exact_whatever_the_weights_are(case, bad):
    run = Run(case)
    for step in range(STEPS):
        for name, parameter in run.parameters.items():
            active = run.trainer.masks[name].flatten().nonzero().flatten()
            for place, value in bad:
                if len(active):
                    where = active[(place + step) % len(active)]
                    parameter.data.view(-1)[where] = value
        run.step()
        run.check()
        assert run.trainer.report is None or not run.trainer.report.skipped
