"""Sparse runs of the three libraries, through the tools that users call."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from minirun import ROOT, free_port, run_script
from mmdet.registry import MODELS as DET
from mmpretrain.registry import MODELS as CLS
from mmseg.registry import MODELS as SEG
from sparserun import sparse_config

from sift_mm.cli import test as test_tool
from sift_mm.cli import train as train_tool


def load(path):
    return torch.load(path, weights_only=False, map_location='cpu')


def last_checkpoint(work_dir):
    return load((work_dir / 'last_checkpoint').read_text())


def probed(work_dir, rank):
    text = (work_dir / f'masks_{rank}.txt').read_text()
    return [json.loads(line) for line in text.splitlines()]


def assert_sparse(checkpoint):
    """Masks have exact counts and weights respect them."""
    masks = checkpoint['sparse_training']['masks']
    assert len(masks) == 19
    # 'match' raises 0.75, a lot where a narrow network has a large stem, and
    # by the same for every layer, up to rounding to whole weights.
    densities = {float(m.float().mean()) for m in masks.values()}
    assert 0.05 < min(densities) and max(densities) < 0.25
    assert max(densities) - min(densities) < 2 / min(
        m.numel() for m in masks.values()
    )
    for name, mask in masks.items():
        weight = checkpoint['state_dict'][name]
        assert not weight[~mask].any()
    return masks


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'mmpretrain'])
def test_a_network_trains_with_rigl_and_keeps_its_density(
    scope, data, tmp_path
):
    config = sparse_config(tmp_path / 'c', scope, data[scope])
    work_dir = tmp_path / 'run'
    train_tool.main([config, '--work-dir', str(work_dir)])
    checkpoint = last_checkpoint(work_dir)
    masks = assert_sparse(checkpoint)
    records = probed(work_dir, 0)
    assert len({r['digest'] for r in records}) == len(records) > 1
    # Counts at every update are those of the distribution.
    density = records[0]['counts']['backbone.layer4.1.conv2.weight'] / (
        9 * 128**2
    )
    counts = {n: max(1, round(density * m.numel())) for n, m in masks.items()}
    for record in records:
        assert record['counts'] == pytest.approx(counts, abs=1)
        assert record['counts'] == records[0]['counts']
    assert records[-1]['counts'] == {n: int(m.sum()) for n, m in masks.items()}

    # What was saved loads into the unmodified ResNet of that width.
    state = {
        k.removeprefix('backbone.'): v
        for k, v in checkpoint['state_dict'].items()
        if k.startswith('backbone.')
    }
    kwargs = dict(depth=18, base_channels=16, stem_channels=16)
    if scope == 'mmpretrain':
        CLS.build(dict(type='ResNet_CIFAR', **kwargs)).load_state_dict(state)
    else:
        for library in (DET, SEG, CLS):
            library.build(dict(type='ResNet', **kwargs)).load_state_dict(
                state, strict=True
            )

    metrics = test_tool.main(
        [
            config,
            (work_dir / 'last_checkpoint').read_text(),
            '--work-dir',
            str(tmp_path / 'test'),
        ]
    )
    assert metrics


def test_killed_and_resumed_it_ends_where_the_unbroken_run_ends(
    data, tmp_path
):
    # Two runs of 'auto' may choose differently: by a clock.
    config = sparse_config(
        tmp_path / 'c',
        'mmpretrain',
        data['mmpretrain'],
        "custom_hooks[0]['execution'] = 'sparse'\n",
    )
    train = [sys.executable, ROOT / 'tools/train.py', config, '--work-dir']
    whole = run_script(*train, tmp_path / 'whole', PYTHONPATH='.')
    assert whole.returncode == 0, whole.stderr
    iters = last_checkpoint(tmp_path / 'whole')['meta']['iter']
    killed = run_script(
        *train, tmp_path / 'broken', KILL_AT=str(iters - 1), PYTHONPATH='.'
    )
    assert killed.returncode < 0
    assert not (tmp_path / 'broken/epoch_3.pth').exists()
    resumed = run_script(
        *train, tmp_path / 'broken', '--resume', PYTHONPATH='.'
    )
    assert resumed.returncode == 0, resumed.stderr

    a = last_checkpoint(tmp_path / 'whole')
    b = last_checkpoint(tmp_path / 'broken')
    for key in a['state_dict']:
        assert torch.equal(a['state_dict'][key], b['state_dict'][key]), key
    for key, mask in a['sparse_training']['masks'].items():
        assert torch.equal(mask, b['sparse_training']['masks'][key]), key
    slots = [c['optimizer']['state'] for c in (a, b)]
    for i in slots[0]:
        assert torch.equal(
            slots[0][i]['momentum_buffer'], slots[1][i]['momentum_buffer']
        )


@pytest.mark.parametrize('algorithm', ['RigL', 'SET'])
def test_two_processes_hold_equal_masks_after_every_update(
    data, tmp_path, algorithm
):
    # Ranks see different images and have different seeds of their own.
    config = sparse_config(
        tmp_path / 'c',
        'mmpretrain',
        data['mmpretrain'],
        'randomness = dict(seed=0, diff_rank_seed=True)\n'
        f"custom_hooks[0]['algorithm'] = '{algorithm}'\n"
        "train_dataloader['batch_size'] = 2\n",
    )
    done = run_script(
        'bash',
        ROOT / 'tools/dist_train.sh',
        config,
        2,
        '--work-dir',
        tmp_path / 'run',
        PORT=free_port(),
        CUDA_VISIBLE_DEVICES='-1',
        OMP_NUM_THREADS='1',
        PYTHONPATH='.',
    )
    assert done.returncode == 0, done.stderr
    ranks = [probed(tmp_path / 'run', rank) for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    assert len({r['digest'] for r in ranks[0]}) == len(ranks[0]) > 5
    assert_sparse(last_checkpoint(tmp_path / 'run'))


def test_mmdets_own_scripts_run_our_config(data, tmp_path):
    config = sparse_config(tmp_path / 'c', 'mmdet', data['mmdet'])
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
    assert_sparse(last_checkpoint(tmp_path / 'run'))
    done = run_script(
        sys.executable,
        theirs / 'test.py',
        config,
        (tmp_path / 'run/last_checkpoint').read_text(),
        '--work-dir',
        tmp_path / 'test',
        PYTHONPATH='.',
    )
    assert done.returncode == 0, done.stderr
    assert 'bbox_mAP' in done.stdout + done.stderr


@pytest.mark.parametrize(
    'scope, key, value, words',
    [
        (
            'mmdet',
            'neck',
            dict(in_channels=[8, 16, 32, 64]),
            r'neck.in_channels=\[16, 32, 64, 128\]',
        ),
        (
            'mmseg',
            'decode_head',
            dict(c1_in_channels=8),
            'decode_head.c1_in_channels=16',
        ),
        (
            'mmseg',
            'auxiliary_head',
            dict(in_channels=32),
            'auxiliary_head.in_channels=64',
        ),
        ('mmpretrain', 'head', dict(in_channels=64), 'head.in_channels=128'),
    ],
)
def test_channels_that_do_not_fit_are_named(
    data, tmp_path, scope, key, value, words
):
    config = sparse_config(
        tmp_path / 'c',
        scope,
        data[scope],
        f"model['{key}'].update({value!r})\n",
    )
    with pytest.raises(ValueError, match=words):
        train_tool.main([config, '--work-dir', str(tmp_path / 'run')])


def test_a_sparsity_that_is_written_twice_has_to_agree(data, tmp_path):
    config = sparse_config(
        tmp_path / 'c',
        'mmpretrain',
        data['mmpretrain'],
        "custom_hooks[0]['sparsity'] = 0.9\n",
    )
    with pytest.raises(
        ValueError, match='sparsity=0.75 and SparseTrainingHook sparsity=0.9'
    ):
        train_tool.main([config, '--work-dir', str(tmp_path / 'run')])


def test_missing_coco_is_said_at_once(tmp_path):
    done = run_script(
        sys.executable,
        ROOT / 'tools/train.py',
        ROOT / 'configs/retinanet_sift_wide_r18.py',
        '--work-dir',
        tmp_path,
    )
    assert done.returncode == 1
    said = done.stderr.strip()
    assert 'Traceback' not in said and said.count('\n') == 0
    for words in ('data/coco', 'instances_train2017.json', 'make demo'):
        assert words in said
