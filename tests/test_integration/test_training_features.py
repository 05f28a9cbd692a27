"""Mask training beside what else a run may be told to do."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch._dynamo.utils import counters

from helpers.forked_scripts import run_forked, train_ranks
from helpers.runs import ROOT
from helpers.sparse_runs import final, load, probed, sparse_config, train
from helpers.toy_runs import (
    Toy,
    assert_same,
    final_state,
    hook_of,
    loader,
    toy_runner,
)
from sift_mm.checkpoint.packing import unpack

SPARSE = "custom_hooks[0]['execution'] = 'sparse'\n"
CONSTANT = dict(type='Constant', initial=0.3)
STATISTICS = ('running_mean', 'running_var', 'num_batches_tracked')


def assert_exact(work_dir, rank=0):
    """Assert exact counts, zeros outside and new masks at every update."""
    records = probed(work_dir, rank)
    assert all(r['counts'] == records[0]['counts'] for r in records)
    assert not any(r['stray'] for r in records)
    assert len({r['digest'] for r in records}) == len(records) > 5
    return records


def trained(checkpoint):
    """Return weights and masks without the statistics of batch norms."""
    masks = checkpoint['sparse_training']['masks']
    return {f'm.{name}': mask for name, mask in masks.items()} | {
        name: value
        for name, value in checkpoint['state_dict'].items()
        if not name.endswith(STATISTICS)
    }


def moved(checkpoint):
    """Return the names of the masks that ever changed."""
    history = checkpoint['sparse_training']['history']
    return {
        name
        for name, ever in history['ever'].items()
        if not torch.equal(ever, history['always'][name])
    }


def part(checkpoint, *stages):
    """Return the names of the masks of some stages."""
    wanted = tuple(f'backbone.layer{stage}.' for stage in stages)
    masks = checkpoint['sparse_training']['masks']
    return {name for name in masks if name.startswith(wanted)}


@pytest.fixture(scope='module')
def plain(data, tmp_path_factory):
    """Train on sparse kernels with nothing beside; return the checkpoint."""
    folder = tmp_path_factory.mktemp('plain')
    config = sparse_config(
        folder / 'c', 'mmpretrain', data['mmpretrain'], SPARSE
    )
    return train(config, folder / 'run')


def test_masks_of_frozen_stages_stay(make_config, tmp_path):
    config = make_config(
        'mmpretrain', "model['backbone'].update(frozen_stages=1)\n"
    )
    checkpoint = train(config, tmp_path / 'run')
    assert_exact(tmp_path / 'run')
    assert part(checkpoint, 1)
    assert moved(checkpoint) == part(checkpoint, 2, 3, 4)


def test_checkpointing_of_activations_changes_nothing(
    make_config, plain, tmp_path
):
    config = make_config(
        'mmpretrain', SPARSE + "model['backbone'].update(with_cp=True)\n"
    )
    states = [plain, train(config, tmp_path)]
    assert_exact(tmp_path)
    assert_same(*map(trained, states))
    # Recomputed it was: batch norms have counted batches twice.
    name = 'backbone.layer1.0.bn1.num_batches_tracked'
    assert [state['state_dict'][name] for state in states] == [9, 18]


def test_learning_rates_of_their_own(make_config, tmp_path):
    config = make_config(
        'mmpretrain',
        "optim_wrapper['optimizer'].update(weight_decay=0.1)\n"
        'optim_wrapper.update(paramwise_cfg=dict(\n'
        '    norm_decay_mult=0., custom_keys={\n'
        "    'layer2': dict(lr_mult=0., decay_mult=0.),\n"
        "    'layer3': dict(lr_mult=0.5)}))\n",
    )
    last = train(config, tmp_path / 'run')
    assert_exact(tmp_path / 'run')
    assert {group['lr'] for group in last['optimizer']['param_groups']} == {
        0.0, 0.0005, 0.001,
    }  # fmt: skip
    assert moved(last) == set(last['sparse_training']['masks'])
    first = load(tmp_path / 'run/epoch_1.pth')
    always = last['sparse_training']['history']['always']
    still = set()
    for name, mask in last['sparse_training']['masks'].items():
        kept = unpack(always[name], mask.numel()).view(mask.shape)
        one, other = (c['state_dict'][name] for c in (first, last))
        if torch.equal(one[kept], other[kept]):
            still.add(name)
            assert not other[~kept].any()  # Grown at 0, and not trained.
    assert still == part(last, 2)


def test_accumulated_batches_train_the_masks_of_a_large_one(tmp_path):
    class Exact(Toy):
        """In float64, where the order of additions decides nothing."""

        def forward(self, inputs, targets=None, mode='tensor'):
            targets = targets if targets is None else targets.double()
            return super().forward(inputs.double(), targets, mode)

    def run(batch, accumulated):
        torch.manual_seed(0)
        runner = toy_runner(
            tmp_path / str(batch),
            dict(
                execution='dense', interval=1, end=1.0, drop_fraction=CONSTANT
            ),
            dict(accumulative_counts=accumulated),
            model=Exact().double(),
            train_dataloader=loader(batch_size=batch),
        )
        digests = []
        runner.register_hook(Watch(digests))
        runner.train()
        return final_state(runner), digests

    (small, steps), (large, whole) = run(4, 2), run(8, 1)
    assert steps[1::2] == whole  # Two iterations a step.
    assert len(set(whole)) == len(whole) == 8
    torch.testing.assert_close(small, large, rtol=1e-10, atol=1e-12)


class Watch(Hook):
    """Hook that records the masks and checks their counts."""

    priority = 'LOW'

    def __init__(self, seen, look=None):
        self.seen = seen
        self.look = look

    def after_train_iter(self, runner, *_, **__):
        """Look."""
        masks = hook_of(runner).trainer.masks
        (mask,) = masks.values()
        assert masks.counts() == {'hidden.weight': 64}
        assert not runner.model.hidden.weight[~mask].any()
        self.seen.append(self.look() if self.look else mask.numpy().tobytes())


def test_channels_last(make_config, plain, tmp_path):
    @HOOKS.register_module(force=True)
    class ChannelsLast(Hook):
        def before_train(self, runner):
            runner.model.to(memory_format=torch.channels_last)

        def after_train(self, runner):
            trainer = runner.optim_wrapper.mask_trainer
            for name, mask in trainer.masks.items():
                weight = trainer.masks.parameters[name]
                assert mask.stride() == weight.stride()
                last = torch.channels_last
                assert weight.is_contiguous(memory_format=last)

    config = make_config(
        'mmpretrain',
        f"{SPARSE}custom_hooks.insert(0, dict(type='ChannelsLast'))\n",
    )
    found = trained(train(config, tmp_path))
    assert_exact(tmp_path)
    torch.testing.assert_close(found, trained(plain), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('execution', ['dense', 'sparse'])
def test_an_update_recompiles_nothing(tmp_path, execution):
    torch._dynamo.reset()
    counters.clear()
    runner = toy_runner(
        tmp_path,
        dict(execution=execution),
        cfg=Config(dict(compile=dict(backend='eager'))),
        epochs=3,
    )
    graphs = []
    runner.register_hook(
        Watch(graphs, lambda: counters['stats']['unique_graphs'])
    )
    runner.train()
    history = hook_of(runner).trainer.history
    assert history.itop_rate() > 0.5
    # Steps that follow an update, and sparse ones that an update follows,
    # may be seen once each. From then on there are three more updates.
    assert 0 < graphs[0] <= graphs[2] < 10
    assert set(graphs[2:]) == {graphs[2]}
    torch._dynamo.reset()


def test_validation_in_between_changes_nothing(make_config, plain, tmp_path):
    config = make_config(
        'mmpretrain', SPARSE + "train_cfg['val_interval'] = 99\n"
    )
    states = [plain, train(config, tmp_path)]
    assert_exact(tmp_path)
    log = next(tmp_path.glob('*/*.log')).read_text()
    validated = re.findall(r'Epoch\(val\).*accuracy/top1', log)
    assert len(validated) == 1  # At the end; 3 times by default.
    assert_same(*map(trained, states))
    assert_same(*(state['state_dict'] for state in states))


def test_parameters_without_a_part_in_two_processes(make_config, tmp_path):
    # The head reads stage 2; what comes after has no gradient.
    config = make_config(
        'mmpretrain',
        "model['backbone'].update(out_indices=(1, ))\n"
        "model['head'].update(in_channels=16 * factor)\n"
        "train_dataloader['batch_size'] = 2\n"
        'find_unused_parameters = True\n',
    )
    train_ranks(config, tmp_path / 'run')
    assert assert_exact(tmp_path / 'run') == assert_exact(tmp_path / 'run', 1)
    checkpoint = final(tmp_path / 'run')
    assert moved(checkpoint) == part(checkpoint, 1, 2)


def test_a_rank_that_dies_ends_the_other(make_config, tmp_path):
    config = make_config('mmpretrain', "train_dataloader['batch_size'] = 2\n")
    tool = [ROOT / 'tools/train.py', config, '--work-dir', tmp_path / 'run']
    done = run_forked(*tool, ranks=2, KILL_AT='2', KILL_RANK='1')
    # Of rank 0, which was neither killed nor ended by the clock.
    assert done.returncode == 2, done.stdout
    last = Path('forked_0.log').read_text().strip().splitlines()[-1]
    assert last.startswith('Another process of this run ended, or hangs')
    assert len(probed(tmp_path / 'run')) == 2
