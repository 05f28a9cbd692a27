"""First masks on batches of a library's own run, in two processes."""

import pytest

from helpers.forked_scripts import train_ranks
from helpers.sparse_runs import assert_masked, final, probed, train

OPTIONS = """
model['backbone']['zero_init_residual'] = False
custom_hooks[0].update(
    init='{init}',
    algorithm=dict(type='RigL', structure=dict(type='Block', filters=2)))
"""


def check(checkpoint):
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


def test_two_processes_draw_equal_masks(make_config, tmp_path):
    config = make_config(
        'mmpretrain',
        OPTIONS.format(init='SNIP')
        + 'randomness = dict(seed=0, diff_rank_seed=True)\n'
        "train_dataloader['batch_size'] = 2\n",
    )
    train_ranks(config, tmp_path / 'run')
    ranks = [probed(tmp_path / 'run', rank) for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    assert_masked(final(tmp_path / 'run'), ranks[0])
    check(final(tmp_path / 'run'))


@pytest.mark.parametrize(
    'scope, init', [('mmdet', 'GraSP'), ('mmseg', 'SynFlow')]
)
def test_the_libraries_losses_and_outputs_are_scored(
    make_config, tmp_path, scope, init
):
    config = make_config(scope, OPTIONS.format(init=init))
    check(train(config, tmp_path / 'run'))
