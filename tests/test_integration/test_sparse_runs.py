"""Sparse runs of the three libraries, through the tools that users call."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from helpers.forked_scripts import run_forked, train_ranks
from helpers.runs import run_script
from helpers.sparse_runs import assert_masked, final, probed, train

OPTIONS = """
model['backbone']['zero_init_residual'] = False
custom_hooks[0].update(
    init=dict(type={!r}),
    algorithm=dict(type='SET', structure=dict(type='Block', filters=2)))
"""


def check_first_masks(checkpoint):
    """Check that scores chose densities, and blocks of two filters."""
    state = checkpoint['sparse_training']
    # Narrow layers leave few counts to choose from.
    assert abs(state['budget']['flops_ratio'] - 1) < 2e-3
    shares = {
        round(float(m.float().mean()), 2) for m in state['masks'].values()
    }
    assert len(shares) > 5
    for mask in state['masks'].values():
        flat = mask.flatten(1)
        assert (flat[::2] == flat[1::2]).all()


def test_two_processes_hold_equal_masks_after_every_update(
    make_config, tmp_path
):
    # Ranks see different images and have different seeds of their own.
    config = make_config(
        'mmpretrain',
        OPTIONS.format('SNIP')
        + 'randomness = dict(seed=0, diff_rank_seed=True)\n'
        "train_dataloader['batch_size'] = 2\n",
    )
    said = train_ranks(config, tmp_path / 'run')
    # The first rank alone says and writes what is run.
    assert said.count('Schedule: ') == said.count('Seconds: ') == 1
    (record,) = (tmp_path / 'run').glob('*/run.json')
    algorithm = json.loads(record.read_text())['masks']['algorithm']
    assert algorithm == "SET with structure=dict(type='Block', filters=2)"
    ranks = [probed(tmp_path / 'run', rank) for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    assert len({r['digest'] for r in ranks[0]}) == len(ranks[0]) > 5
    assert_masked(final(tmp_path / 'run'), ranks[0])
    check_first_masks(final(tmp_path / 'run'))


@pytest.mark.parametrize(
    'scope, init', [('mmdet', 'GraSP'), ('mmseg', 'SynFlow')]
)
def test_the_libraries_losses_and_outputs_are_scored(
    make_config, tmp_path, scope, init
):
    more = "custom_hooks[0]['init'].update(rounds=9)\n" * (init == 'SynFlow')
    config = make_config(scope, OPTIONS.format(init) + more)
    check_first_masks(train(config, tmp_path / 'run'))


def test_mmdets_own_scripts_run_our_config(make_config, tmp_path):
    config = make_config('mmdet')
    theirs = Path(find_spec('mmdet').origin).parent / '.mim/tools'
    done = run_script(
        sys.executable,
        theirs / 'train.py',
        config,
        '--work-dir',
        tmp_path / 'run',
        PYTHONPATH='.',
    )
    assert done.returncode == 0, done.stderr
    assert_masked(final(tmp_path / 'run'), probed(tmp_path / 'run'))
    checkpoint = (tmp_path / 'run/last_checkpoint').read_text()
    done = run_forked(
        theirs / 'test.py', config, checkpoint, '--work-dir', tmp_path / 'test'
    )
    assert done.returncode == 0, done.stdout
    assert 'bbox_mAP' in done.stdout


def test_a_sparsity_that_is_written_twice_has_to_agree(make_config, tmp_path):
    config = make_config('mmpretrain', "custom_hooks[0]['sparsity'] = 0.9\n")
    said = 'sparsity=0.75 and the masks sparsity=0.9'
    with pytest.raises(SystemExit, match=said):
        train(config, tmp_path / 'run')
