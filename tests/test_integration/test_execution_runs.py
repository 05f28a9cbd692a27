"""Sparse execution in runs: of several ranks, averaged, resumed, tested."""

import os

import torch

from helpers.forked_scripts import train_ranks
from helpers.runs import forget_instances
from helpers.sparse_runs import probed, train
from helpers.toy_runs import assert_same
from sift_mm.cli import test as test_tool
from sift_mm.kernels import masked_layers
from sift_mm.kernels import timing as clock


def test_all_ranks_choose_as_rank_0_does(make_config, tmp_path, monkeypatch):
    def told(*_):
        # Forks have this clock too. Rank 1 would choose the reverse.
        fast, slow = (1.0, 2.0) if os.environ['RANK'] == '0' else (2.0, 1.0)
        return clock.Timing((slow, fast, slow), (fast, slow, fast))

    monkeypatch.setattr(masked_layers, 'time_products', told)
    monkeypatch.setattr(masked_layers, 'SMALLEST', 0)
    config = make_config('mmpretrain', "train_dataloader['batch_size'] = 2\n")
    train_ranks(config, tmp_path)
    ranks = [probed(tmp_path, rank) for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    for record in ranks[0]:
        found = record['choices']
        # The first reads images.
        assert {f'{name}.weight' for name in found} == {
            'backbone.conv1.weight',
            *record['counts'],
        }
        for ways in found.values():
            assert set(map(tuple, ways.values())) == {(True, False, True)}


def test_an_average_survives_a_resume(make_config, tmp_path):
    config = make_config(
        'mmpretrain',
        "custom_hooks[0]['execution'] = 'sparse'\n"
        "custom_hooks.append(dict(type='EMAHook', momentum=0.1))\n",
    )
    whole = train(config, tmp_path / 'whole')
    first = str(tmp_path / 'whole/epoch_1.pth')
    forget_instances()
    resumed = train(config, tmp_path / 'resumed', '--resume', first)
    assert resumed['meta']['iter'] == whole['meta']['iter']
    # The first is the average, the second what is trained.
    for key in ('state_dict', 'ema_state_dict'):
        assert_same(whole[key], resumed[key])
    masks = whole['sparse_training']['masks']
    assert_same(masks, resumed['sparse_training']['masks'])
    for name, mask in masks.items():
        average = whole['state_dict'][name]
        own = whole['ema_state_dict'][f'module.{name}']
        assert not average[~mask].any() and not own[~mask].any()
        assert not torch.equal(average, own)


# So that predictions differ from place to place, and metrics are not 0.
SEG = """
optim_wrapper['optimizer']['lr'] = 0.03
train_cfg.update(max_iters=10, val_interval=10)
default_hooks['checkpoint']['interval'] = 10
for part in ('backbone', 'decode_head', 'auxiliary_head'):
    model[part]['norm_cfg'] = dict(type='BN', momentum=1.)
"""


def test_on_sparse_kernels_metrics_are_the_same(make_config, tmp_path):
    config = make_config('mmseg', SEG)
    train(config, tmp_path / 'run')
    checkpoint = (tmp_path / 'run/last_checkpoint').read_text()
    found = []
    for folder, option in (('dense', []), ('sparse', ['--sparse'])):
        forget_instances()
        argv = [config, checkpoint, '--work-dir', str(tmp_path / folder)]
        found.append(test_tool.main(argv + option))
    assert found[1].pop('seconds_per_image') > 0
    assert found[0] == found[1]
    assert found[0]['mIoU'] > 0
    said = next(tmp_path.glob('sparse/*/*.log')).read_text()
    assert 'backbone.layer4.1.conv2: ' in said
