"""A small MMEngine run on generated points, for tests of the engine."""

import itertools
import json

import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

_names = (f'toy{i}' for i in itertools.count())


class Points(torch.utils.data.Dataset):
    """Sixteen points and the product of two of their coordinates."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(16, 8, generator=generator)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        x = self.x[index]
        return x, x[:1] * x[1:2]


class Toy(BaseModel):
    """Two linear layers; the first can be sparse, the second stays dense."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(8, 16)
        self.out = nn.Linear(16, 1)

    def forward(self, inputs, targets=None, mode='tensor'):
        y = self.out(torch.tanh(self.hidden(inputs)))
        if mode == 'loss':
            return dict(loss=(y - targets).square().mean())
        return y


def loader(dataset=None, batch_size=4, **more):
    """Return the config of a data loader."""
    return (
        dict(
            dataset=dataset or Points(),
            batch_size=batch_size,
            collate_fn=dict(type='default_collate'),
            sampler=dict(type='DefaultSampler', shuffle=True),
        )
        | more
    )


def toy_runner(work_dir, hook=None, wrapper=None, epochs=4, **kwargs):
    """Build a runner with four iterations an epoch.

    ``hook`` and ``wrapper`` have arguments that are not the standard ones;
    so have ``kwargs``, for the runner.
    """
    torch.manual_seed(0)
    standard = dict(
        type='SparseTrainingHook',
        sparsity=0.5,
        interval=2,
        include=['hidden.weight'],
    )
    hooks = [standard | (hook or {}), *kwargs.pop('custom_hooks', [])]
    arguments = dict(
        model=kwargs.pop('model', None) or Toy(),
        work_dir=str(work_dir),
        train_dataloader=loader(),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(
            type='OptimWrapper',
            optimizer=dict(
                type='SGD', lr=0.1, momentum=0.9, weight_decay=0.01
            ),
        )
        | (wrapper or {}),
        param_scheduler=dict(type='CosineAnnealingLR', T_max=4),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1),
            checkpoint=dict(type='CheckpointHook', interval=1),
        ),
        visualizer=dict(
            type='Visualizer',
            name=next(_names),
            vis_backends=[dict(type='LocalVisBackend')],
        ),
        custom_hooks=hooks,
        randomness=dict(seed=kwargs.pop('seed', 3)),
        log_level='WARNING',
        experiment_name=next(_names),
    )
    return Runner(**(arguments | kwargs))


def toy_run(*args, **kwargs):
    """Train a toy runner and return it."""
    runner = toy_runner(*args, **kwargs)
    runner.train()
    return runner


def hook_of(runner):
    """Return the SparseTrainingHook of a run."""
    return next(
        h for h in runner.hooks if type(h).__name__ == 'SparseTrainingHook'
    )


def scalars(work_dir):
    """Read the scalars of the run's visualizer by name."""
    found = {}
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            for key, value in record.items():
                found.setdefault(key, []).append((record.get('step'), value))
    return found


def final_state(runner):
    """Return weights, masks and optimizer slots of a run."""
    trainer = hook_of(runner).trainer
    state = {f'w.{n}': p for n, p in runner.model.state_dict().items()}
    state |= {f'm.{n}': m for n, m in trainer.masks.items()}
    for i, p in enumerate(runner.model.parameters()):
        state |= {
            f's.{i}.{k}': v
            for k, v in runner.optim_wrapper.optimizer.state[p].items()
            if isinstance(v, torch.Tensor)
        }
    return state


def assert_same(a, b):
    """Assert that two mappings hold the same tensors, bit for bit."""
    assert a.keys() == b.keys()
    different = [k for k in a if not torch.equal(a[k], b[k])]
    assert not different


def pretrained_toy(path):
    """Return a toy model whose init_cfg loads a checkpoint."""
    model = Toy()
    model.init_cfg = dict(type='Pretrained', checkpoint=str(path))
    return model
