"""First masks on a run's own batches, which stay those of the run."""

import pytest
import torch

from helpers.toy_runs import (
    Points,
    Toy,
    assert_same,
    final_state,
    hook_of,
    loader,
    toy_run,
    toy_runner,
)
from sift_mm.engine import hook as hook_module

pytestmark = pytest.mark.usefixtures('fresh_process')


class Noisy(Points):
    """Points with noise, as an augmentation adds it."""

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x + torch.rand(8), y


class Recording(Toy):
    """A model that keeps its inputs."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, inputs, targets=None, mode='tensor'):
        self.seen.append(inputs.clone())
        return super().forward(inputs, targets, mode)


def recorded(folder, options, **kwargs):
    model = Recording()
    data = loader(Noisy(), **kwargs.pop('data', {}))
    runner = toy_run(
        folder, options, model=model, train_dataloader=data, **kwargs
    )
    return runner, model.seen


@pytest.mark.parametrize(
    'init, data',
    [
        ('SynFlow', dict()),
        ('GraSP', dict(sampler=dict(type='InfiniteSampler', shuffle=True))),
        ('SNIP', dict(num_workers=1, persistent_workers=True)),
    ],
)
def test_a_run_reads_the_batches_that_it_would(tmp_path, init, data):
    cfg = dict(train_cfg=dict(type='IterBasedTrainLoop', max_iters=4))
    more = cfg if 'sampler' in data else dict(epochs=1)
    _, plain = recorded(tmp_path / 'a', dict(), data=data, **more)
    options = dict(init=dict(type=init))
    runner, seen = recorded(tmp_path / 'b', options, data=data, **more)
    first, steps = seen[: -len(plain)], seen[-len(plain) :]
    assert len(plain) == 4
    assert all(torch.equal(a, b) for a, b in zip(plain, steps, strict=True))
    if init == 'SynFlow':
        assert all(torch.equal(x, torch.ones(1, 8).double()) for x in first)
    else:
        # The FLOPs are counted on it, then it is scored: the first batch.
        assert all(torch.equal(x, plain[0]) for x in first)
    assert hook_of(runner).trainer.masks.counts() == {'hidden.weight': 64}


def test_they_are_restored_and_never_drawn_again(tmp_path, monkeypatch):
    options = dict(init=dict(type='SNIP', batches=2), include=['*.weight'])
    whole = toy_run(tmp_path / 'a', options)
    masks = hook_of(whole).trainer.masks
    assert sum(masks.counts().values()) == 72

    def never(*_):
        raise AssertionError('drawn again')

    monkeypatch.setattr(hook_module, 'first_passes', never)
    path = str(tmp_path / 'a/epoch_2.pth')
    resumed = toy_run(tmp_path / 'b', options, resume=True, load_from=path)
    assert_same(final_state(whole), final_state(resumed))


def test_a_loader_that_cannot_be_copied_is_refused(tmp_path):
    data = torch.utils.data.DataLoader(Points(), 4)
    runner = toy_runner(tmp_path, dict(init='SNIP'), train_dataloader=data)
    with pytest.raises(ValueError, match='need train_dataloader as a dict'):
        runner.train()
