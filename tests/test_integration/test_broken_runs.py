"""Runs of the tool with augmentation, workers and ranks, broken anywhere."""

import pytest

from helpers.forked_scripts import train_ranks
from helpers.sparse_runs import load, probed
from helpers.toy_runs import assert_same

AUGMENTED = """
train_dataloader['dataset']['pipeline'] = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=32),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='ColorJitter', brightness=0.4),
    dict(type='PackInputs')]
train_dataloader.update(batch_size=2, num_workers=2)
custom_hooks[0]['execution'] = 'sparse'  # No clock chooses.
train_cfg['max_epochs'] = 2
default_hooks['checkpoint'] = dict(
    type='CheckpointHook', interval=1, by_epoch=False)
optim_wrapper['accumulative_counts'] = 3
"""


@pytest.mark.parametrize('ranks, place', [(1, 4), (2, 2)])
def test_a_run_broken_inside_a_step_and_an_epoch_ends_as_the_unbroken_one(
    make_config, tmp_path, ranks, place
):
    # Each rank has summed other gradients by then.
    config = make_config('mmpretrain', AUGMENTED)
    states = []
    for name, more in (
        ('whole', []),
        ('resumed', ['--resume', tmp_path / f'whole/iter_{place}.pth']),
    ):
        train_ranks(config, tmp_path / name, *more, ranks=ranks)
        last = (tmp_path / name / 'last_checkpoint').read_text()
        assert not last.endswith(f'iter_{place}.pth')
        states.append(load(last))
        assert probed(tmp_path / name, ranks - 1)[-1]['iter'] > place
    a, b = states
    assert a['meta']['iter'] == b['meta']['iter']
    assert_same(a['state_dict'], b['state_dict'])
    assert_same(*(state['sparse_training']['masks'] for state in states))
