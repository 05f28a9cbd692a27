"""Scalars of masks, against values taken beside the run."""

import json

import pytest
import torch
from mmengine.hooks import Hook
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.toy_runs import hook_of, scalars, toy_run, toy_runner

NAME = 'hidden.weight'


class Probe(Hook):
    """Record masks and accumulated gradients of each iteration."""

    priority = 'VERY_HIGH'

    def before_train(self, runner):
        self.masks, self.gradients = [], []
        self.weight = runner.model.hidden.weight
        self.weight.register_post_accumulate_grad_hook(
            lambda p: self.gradients.append(p.grad.clone())
        )

    def before_train_iter(self, runner, *_, **__):
        self.masks.append(hook_of(runner).trainer.masks[NAME].clone())


class Operations(TorchDispatchMode):
    """Count the operations that PyTorch dispatches."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


# 16 iterations; updates every 2 steps up to 75 % of the steps.
@pytest.mark.parametrize(
    'hook, wrapper, steps',
    [
        (dict(log_layers=True), {}, [2, 4, 6, 8, 10, 12]),
        (dict(log_layers=5, algorithm='SET'), {}, [5, 10, 15]),
        (dict(log_layers=5, algorithm='Static'), {}, [5, 10, 15]),
        # Eight steps of two batches: scalars are numbered by iteration.
        (dict(log_layers=True), dict(accumulative_counts=2), [4, 8, 12]),
        (
            dict(log_layers=True, placement='replace_step'),
            dict(clip_grad=dict(max_norm=1e-3)),
            [2, 4, 6, 8, 10, 12],
        ),
    ],
)
def test_layers_against_masks_and_gradients(tmp_path, hook, wrapper, steps):
    probe = Probe()
    runner = toy_runner(
        tmp_path,
        hook | dict(execution='sparse'),
        wrapper,
        custom_hooks=[probe],
    )
    runner.train()
    found = scalars(tmp_path)
    masks = [*probe.masks, hook_of(runner).trainer.masks[NAME]]
    before = masks[0]
    for i, step in enumerate(steps):
        new = masks[step]
        gradient = probe.gradients[step - 1] * masks[step - 1]
        so_far = torch.stack(masks[: step + 1])
        expected = {
            'density': 0.5,
            'moved': 1 - (new & before).sum().item() / 64,
            'itop_rate': so_far.any(0).float().mean().item(),
            'doc_rate': so_far.all(0).float().mean().item(),
            'dead_inputs': (~new.any(0)).sum().item(),
            'dead_outputs': (~new.any(1)).sum().item(),
            'gradient_norm': gradient.norm().item(),
            'sparse_products': 3,
        }
        for metric, value in expected.items():
            logged = found[f'sparse/{metric}/{NAME}'][i]
            assert logged == (step, pytest.approx(value, rel=1e-5)), metric
        before = new
    assert len(found[f'sparse/density/{NAME}']) == len(steps)
    one = dict(found[f'sparse/doc_rate/{NAME}'])
    assert one.items() <= dict(found['sparse/doc_rate']).items()


def test_a_resumed_run_logs_what_the_unbroken_one_logs(tmp_path):
    hook = dict(log_layers=True)
    toy_run(tmp_path / 'whole', hook)
    toy_run(
        tmp_path / 'resumed',
        hook,
        resume=True,
        load_from=str(tmp_path / 'whole/epoch_2.pth'),
    )
    whole, resumed = (
        {k: v for k, v in scalars(tmp_path / name).items() if 'sparse/' in k}
        for name in ('whole', 'resumed')
    )
    late = {k: [e for e in v if e[0] > 8] for k, v in whole.items()}
    assert late == resumed and f'sparse/moved/{NAME}' in late


def test_a_gradient_that_is_not_finite_is_left_out(tmp_path):
    runner = toy_runner(tmp_path, dict(log_layers=3), epochs=1)
    runner.train_dataloader.dataset.x[:] = float('nan')
    runner.train()
    found = scalars(tmp_path)
    assert [step for step, _ in found[f'sparse/density/{NAME}']] == [3]
    assert f'sparse/gradient_norm/{NAME}' not in found
    for path in tmp_path.glob('*/vis_data/scalars.json'):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert not any('sparse/moved' in line for line in lines)


@pytest.mark.parametrize('layers', [False, True, 100])
def test_a_step_that_logs_nothing_runs_no_operation(tmp_path, layers):
    runner = toy_run(tmp_path, dict(log_layers=layers))
    hook, wrapper = hook_of(runner), runner.optim_wrapper
    assert (wrapper.before_step is None) == (layers is False)
    hook.log._seen = 0  # As after a step.
    with Operations() as operations:
        if wrapper.before_step is not None:
            wrapper.before_step()
        assert hook.log.after_step(None) == {}
    assert operations.count == 0
