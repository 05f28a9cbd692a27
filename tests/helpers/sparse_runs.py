"""Sparse variants of the small configs, their runs, and a mask probe."""

import hashlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from helpers.runs import write_config

SPARSE = """
custom_imports = dict(
    imports=['sift_mm', 'helpers.sparse_runs'], allow_failed_imports=False)
model['backbone'].update(family=family, sparsity=0.75)
# Twice the mini width of 8: 16, 32, 64, 128.
factor = 2 if 'wide' in family else 1
custom_hooks = [
    dict(type='SparseTrainingHook', interval=1, end=1.,
         drop_fraction=dict(type='Constant', initial=0.3)),
    dict(type='MaskProbe')]
"""
KINDS = {
    'mmdet': """
model['backbone'].update(type='SparseIFTResNet')
model['neck'].update(in_channels=[8 * factor * 2**i for i in range(4)])
""",
    # DeepLabV3+ in place of FCN: dilated, and its head reads stage 1 too.
    'mmseg': """
model['backbone'].update(type='SparseIFTResNet')
model['decode_head'] = dict(
    _delete_=True, type='DepthwiseSeparableASPPHead', in_channels=64 * factor,
    in_index=3, channels=16, dilations=(1, 2), c1_in_channels=8 * factor,
    c1_channels=8, num_classes=19, norm_cfg=dict(type='BN'),
    loss_decode=dict(type='CrossEntropyLoss'))
model['auxiliary_head'].update(
    in_channels=32 * factor, in_index=2, norm_cfg=dict(type='BN'))
model['backbone']['norm_cfg'] = dict(type='BN')
""",
    'mmpretrain': """
model['backbone'].update(type='SparseIFTResNet_CIFAR')
model['head'].update(in_channels=64 * factor)
train_cfg['max_epochs'] = 3
default_hooks['checkpoint'] = dict(type='CheckpointHook', interval=1)
""",
}


def sparse_config(
    folder: Path,
    scope: str,
    data_root: Path,
    more: str = '',
    family: str = 'wide',
) -> str:
    """Write the small sparse config of a library with more code."""
    folder.mkdir(exist_ok=True)
    path = Path(write_config(folder, scope, data_root))
    with path.open('a') as stream:
        stream.write(f'family = {family!r}{SPARSE}{KINDS[scope]}{more}')
    return str(path)


def load(path: str | Path) -> dict[str, Any]:
    return torch.load(path, weights_only=False, map_location='cpu')


def final(work_dir: Path) -> dict[str, Any]:
    """Load the last checkpoint of a run."""
    return load((work_dir / 'last_checkpoint').read_text())


def train(config: str, work_dir: Path, *options: str) -> dict[str, Any]:
    """Train like the tool; return the last checkpoint."""
    # It imports the libraries, and ranks import this file.
    from sift_mm.cli.train import main

    main([config, '--work-dir', str(work_dir), *options])
    return final(work_dir)


def probed(work_dir: Path, rank: int = 0) -> list[dict[str, Any]]:
    """Read the records of :class:`MaskProbe`."""
    text = (work_dir / f'masks_{rank}.txt').read_text()
    return [json.loads(line) for line in text.splitlines()]


def assert_masked(checkpoint, records):
    """Assert constant counts and zeros outside the masks."""
    masks = checkpoint['sparse_training']['masks']
    counts = {name: int(mask.sum()) for name, mask in masks.items()}
    assert len(records) > 1
    for record in records:
        assert record['counts'] == counts
    for name, mask in masks.items():
        weight = checkpoint['state_dict'][name]
        assert weight[mask].any() and not weight[~mask].any()
    budget = checkpoint['sparse_training']['budget']
    assert budget['nominal'] == 0.75
    # Narrow layers of few weights: a thousandth is one of them.
    assert abs(budget['flops_ratio'] - 1) < 1e-3
    density = sum(counts.values()) / sum(m.numel() for m in masks.values())
    assert abs(density - 1 + budget['sparsity']) < 1e-3


@HOOKS.register_module()
class MaskProbe(Hook):
    """Hook that records the masks after each iteration, one file a rank.

    Their digest and counts, how many weights outside them are not zero, and
    what runs sparse.

    With KILL_AT in the environment it kills its process, as a machine that
    fails does, after that many iterations; with KILL_RANK that rank alone.
    """

    priority = 'LOW'

    def after_train_iter(
        self, runner, batch_idx, data_batch=None, outputs=None
    ):
        trainer = runner.optim_wrapper.mask_trainer
        if trainer is None:
            return  # A member without masks.
        masks = trainer.masks
        digest = hashlib.sha256()
        for mask in masks.values():
            digest.update(mask.numpy().tobytes())
        record = dict(
            iter=runner.iter,
            digest=digest.hexdigest(),
            counts=masks.counts(),
            stray=sum(
                int(masks.parameters[name].detach()[~mask].count_nonzero())
                for name, mask in masks.items()
            ),
            choices=trainer.execution.choices(),
        )
        with open(f'{runner.work_dir}/masks_{get_rank()}.txt', 'a') as file:
            file.write(json.dumps(record) + '\n')
        killed = int(os.environ.get('KILL_RANK', get_rank())) == get_rank()
        if killed and runner.iter + 1 == int(os.environ.get('KILL_AT', -1)):
            os.kill(os.getpid(), signal.SIGKILL)
