"""Runs whose density changes: killed, transferred and described."""

import multiprocessing
import os
import re
import signal

import pytest
import torch
from mmengine.hooks import Hook

import sift_mm.engine  # noqa: F401, registers the hook
from helpers.toy_runs import (
    assert_same,
    final_state,
    hook_of,
    toy_run,
    toy_runner,
)

pytestmark = pytest.mark.usefixtures('fresh_process')
GRADUAL = dict(
    GMP=dict(algorithm='GMP', end=1.0),
    GraNet=dict(algorithm=dict(type='GraNet', initial=0.2), end=1.0),
    SNFS=dict(algorithm='SNFS', end=1.0),
    MEST=dict(algorithm=dict(type='MEST', soft=True), end=1.0),
    groups=dict(
        algorithm=dict(type='GraNet', initial=0.2, structure='ConstantFanIn'),
        end=1.0,
        include=['*.weight'],
        groups={
            'out.*': dict(
                algorithm=dict(type='SNFS', structure='NM'), interval=3
            )
        },
    ),
)


class Kill(Hook):
    """Hook that kills its process, as a machine that fails does."""

    def after_train_iter(self, runner, *_, **__):
        if runner.iter == 9:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize('name', GRADUAL)
def test_a_killed_run_ends_as_the_unbroken_one(name, tmp_path):
    whole = toy_run(tmp_path / 'whole', GRADUAL[name])
    work_dir = tmp_path / 'broken'
    process = multiprocessing.get_context('fork').Process(
        target=toy_run,
        args=(work_dir, GRADUAL[name]),
        kwargs=dict(custom_hooks=[Kill()]),
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    resumed = toy_run(work_dir, GRADUAL[name], resume=True)
    assert_same(final_state(resumed), final_state(whole))
    counts = {'hidden.weight': 64}
    counts |= {'out.weight': 8} if name == 'groups' else {}
    assert hook_of(resumed).trainer.masks.counts() == counts


@pytest.mark.parametrize('initial', [0.0, 0.2])
def test_a_run_is_resumed_before_its_first_update(initial, tmp_path):
    # All weights of a run that starts dense are active then.
    rule = dict(
        algorithm=dict(type='GMP', initial=initial), interval=6, end=1.0
    )
    whole = toy_run(tmp_path / 'whole', rule)
    start = dict(load_from=str(tmp_path / 'whole/epoch_1.pth'), resume=True)
    found = toy_run(tmp_path / 'resumed', rule, **start)
    assert_same(final_state(found), final_state(whole))
    # Full masks stay wrong for a run that has always been sparse.
    with pytest.raises(ValueError, match='masks|sparsity'):
        toy_run(tmp_path / 'other', dict(interval=6), **start)


def test_what_a_falling_density_costs_is_logged(tmp_path):
    runner = toy_run(tmp_path, GRADUAL['GMP'], log_level='INFO')
    log = next(tmp_path.glob('*/*.log')).read_text()
    line = re.search('GMP on 1 parameters.*', log)[0]
    # Eight updates, at steps 2 to 16; the last step uses the mask of step 14.
    mean = sum(0.5 + 0.5 * (1 - u / 8) ** 3 for u in range(8)) / 8
    shown = re.search('is (.*) at the start and (.*) on average', line)
    start, found = shown.groups()
    assert float(start) == 1
    assert float(found) == pytest.approx(mean, abs=0.004)  # Whole weights.
    assert 'masks at density 0.500000' in line
    assert runner.iter == 16


def test_masks_of_a_checkpoint_keep_their_density(tmp_path):
    toy_run(tmp_path / 'first')
    with pytest.raises(ValueError, match='GMP changes it: choose another'):
        toy_run(
            tmp_path / 'second',
            GRADUAL['GMP'] | dict(transfer='train'),
            load_from=str(tmp_path / 'first/epoch_4.pth'),
        )
    # First masks drawn anew, of the weights of a checkpoint.
    again = toy_runner(
        tmp_path / 'third',
        GRADUAL['GMP'] | dict(init='TopK'),
        load_from=str(tmp_path / 'first/epoch_4.pth'),
    )
    again.train()
    weight = torch.load(tmp_path / 'third/epoch_4.pth', weights_only=False)
    found = weight['state_dict']['hidden.weight']
    assert int(found.count_nonzero()) == 64


def test_a_run_is_not_resumed_with_another_density(tmp_path):
    toy_run(tmp_path, GRADUAL['GMP'], epochs=2)
    changed = dict(algorithm=dict(type='GMP', initial=0.2), end=1.0)
    with pytest.raises(ValueError, match='Use the sparsity'):
        toy_run(tmp_path, changed, resume=True)
    with pytest.raises(ValueError, match='its interval, end, .* and length'):
        toy_run(tmp_path, GRADUAL['GMP'], epochs=5, resume=True)
