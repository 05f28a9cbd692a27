"""Runs of the tool with augmentation, workers and ranks, broken anywhere."""

import json

import pytest

from helpers.forked_scripts import run_forked, train_ranks
from helpers.runs import ROOT, forget_instances
from helpers.sparse_runs import assert_masked, final, probed, train
from helpers.toy_runs import assert_same

AUGMENTED = """
train_dataloader['dataset']['pipeline'] = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=32),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='ColorJitter', brightness=0.4),
    dict(type='PackInputs')]
train_dataloader.update(batch_size=2, num_workers=1)
custom_hooks[0]['execution'] = 'sparse'  # No clock chooses.
train_cfg['max_epochs'] = 2
default_hooks['checkpoint'] = dict(
    type='CheckpointHook', interval=1, by_epoch=False)
optim_wrapper['accumulative_counts'] = 3
"""


def test_a_run_broken_inside_a_step_and_an_epoch_ends_as_the_unbroken_one(
    make_config, tmp_path
):
    config = make_config('mmpretrain', AUGMENTED)
    a = train(config, tmp_path / 'whole')
    forget_instances()
    place = str(tmp_path / 'whole/iter_4.pth')
    b = train(config, tmp_path / 'resumed', '--resume', place)
    assert a['meta']['iter'] == b['meta']['iter'] > 4
    assert_same(a['state_dict'], b['state_dict'])
    assert_same(*(state['sparse_training']['masks'] for state in (a, b)))


def test_ranks_killed_while_the_density_falls_end_as_unbroken_ones(
    make_config, tmp_path
):
    # Each rank has summed other gradients by then, inside a step.
    ranks = 2
    config = make_config(
        'mmpretrain',
        AUGMENTED + "custom_hooks[0].update(algorithm=dict(type='GraNet'"
        ", initial=0.0), groups={'*.layer2.*': dict(algorithm=dict("
        "type='SNFS', structure='Block'), interval=2)})\n",
    )
    train_ranks(config, tmp_path / 'whole', ranks=ranks)
    tool, folder = ROOT / 'tools/train.py', tmp_path / 'broken'
    options = config, '--work-dir', folder
    assert run_forked(tool, *options, ranks=ranks, KILL_AT='4').returncode
    broken = final(folder)
    train_ranks(config, folder, '--resume', 'auto', ranks=ranks)
    a, b = (final(tmp_path / name) for name in ('whole', 'broken'))
    assert a['meta']['iter'] == b['meta']['iter']
    assert_same(a['state_dict'], b['state_dict'])
    states = [each['sparse_training'] for each in (broken, a, b)]
    assert_same(states[1]['masks'], states[2]['masks'])
    active = [sum(m.sum() for m in s['masks'].values()) for s in states]
    assert active[0] > active[1]  # It was broken on the way.
    budget = states[1]['budget']
    assert abs(budget['flops_ratio'] - 1) < 1e-3 < budget['mean_flops_ratio']
    assert_masked(a, [dict(counts=probed(folder)[-1]['counts'])] * 2)
    # The record of the run is on the final masks, and the mean of training.
    path = next((tmp_path / 'whole').glob('*/run.json'))
    record = json.loads(path.read_text())
    assert record['masks']['solved'] == pytest.approx(budget['sparsity'])
    ratio = pytest.approx(budget['model_flops_ratio'])
    assert record['flops']['ratio'] == ratio
    assert record['flops']['training_ratio'] > budget['mean_flops_ratio']
