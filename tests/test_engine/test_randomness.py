"""A run that is broken anywhere ends where the unbroken one ends."""

import multiprocessing
import random

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from torch import nn

from helpers.toy_runs import (
    Points,
    Toy,
    assert_same,
    final_state,
    loader,
    toy_run,
)
from sift_mm.engine.launch import end_workers

LAST = 10


class Augmented(Points):
    """Points that are moved at random, by the generators of three."""

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        moved = x + 0.1 * torch.randn(8) + random.random() - np.random.rand()
        return moved.float(), y


class WithDropout(Toy):
    """Toy model with dropout."""

    def __init__(self):
        super().__init__()
        self.out = nn.Sequential(nn.Dropout(0.5), nn.Linear(16, 1))


LOOPS = {
    # Four iterations an epoch: one and two are whole in ten.
    'epochs': dict(by_epoch=True, max_epochs=3),
    'iterations': dict(by_epoch=False, max_iters=LAST),
    'endless': dict(by_epoch=False, max_iters=LAST),
}
LOADERS = {
    'alone': dict(num_workers=0),
    'workers': dict(num_workers=2),
    'lasting workers': dict(num_workers=2, persistent_workers=True),
}


def run(work_dir, loop, workers, counts=1, seed=3, data=None, **kwargs):
    """Train for ten or twelve iterations with a checkpoint after each."""
    sampler = 'InfiniteSampler' if loop == 'endless' else 'DefaultSampler'
    torch.manual_seed(0)
    model = WithDropout()
    runner = toy_run(
        work_dir,
        dict(end=1.0),
        wrapper=dict(accumulative_counts=counts),
        model=model,
        seed=seed,
        train_dataloader=loader(
            data or Augmented(),
            sampler=dict(type=sampler, shuffle=True),
            **LOADERS[workers],
        ),
        train_cfg=LOOPS[loop],
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', interval=1, by_epoch=False)
        ),
        **kwargs,
    )
    end_workers(runner)
    assert not multiprocessing.active_children()
    return runner


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    # MMEngine waits two seconds where an endless iterator begins anew.
    monkeypatch.setattr('time.sleep', lambda seconds: None)


@pytest.mark.parametrize(
    'loop, workers, counts',
    [
        *((loop, 'alone', 1) for loop in LOOPS),
        ('epochs', 'workers', 1),
        ('epochs', 'lasting workers', 1),
        ('iterations', 'lasting workers', 1),
        ('endless', 'workers', 1),
        # Neither the epoch's four iterations nor all are whole steps.
        ('epochs', 'alone', 3),
        ('endless', 'alone', 3),
    ],
)
def test_broken_after_any_iteration_it_ends_as_the_unbroken_one(
    tmp_path, loop, workers, counts
):
    whole = run(tmp_path / 'whole', loop, workers, counts)
    state = final_state(whole)
    # With workers, each run takes a second.
    places = range(1, whole.iter) if workers == 'alone' else (3, 4, 6)
    for place in places:
        resumed = run(
            tmp_path / f'{place}',
            loop,
            workers,
            counts,
            seed=99 if counts == 1 else 3,
            resume=True,
            load_from=str(tmp_path / 'whole' / f'iter_{place}.pth'),
        )
        assert resumed.iter == whole.iter
        assert_same(state, final_state(resumed))


def test_new_workers_do_not_repeat_the_epoch_before(tmp_path):
    # MMEngine seeds workers alike in each epoch.
    seen = []

    class Watch(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            seen.extend(data_batch[0][:, 0].tolist())

    class Noise(Augmented):
        def __init__(self):
            super().__init__()
            self.x.zero_()

    run(tmp_path, 'epochs', 'workers', data=Noise(), custom_hooks=[Watch()])
    assert len(seen) == len(set(seen)) == 3 * 16
