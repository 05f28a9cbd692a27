"""Tests of the shell scripts: real processes, and a Slurm of our own."""

import os

import pytest
import torch
from minirun import ROOT, free_port, run_script

TOOLS = ROOT / 'tools'


def test_dist_train(configs, tmp_path):
    done = run_script(
        'bash', TOOLS / 'dist_train.sh', configs['mmseg'], 2,
        '--work-dir', tmp_path,
        PORT=free_port(), CUDA_VISIBLE_DEVICES='-1',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert 'GPU number: 2' in log
    assert 'mIoU' in log
    said = done.stdout + done.stderr
    assert said.count('communicate by gloo') == 1
    assert 'OneDL' not in said  # What a library prints as it is imported.
    assert said.count('SyncBN becomes BN') == 1
    checkpoint = tmp_path / 'iter_2.pth'
    assert torch.load(checkpoint, weights_only=False)['meta']['iter'] == 2


@pytest.mark.parametrize(
    'script, words',
    [
        ('dist_train.sh', 'CONFIG GPUS'),
        ('dist_test.sh', 'CONFIG CHECKPOINT GPUS'),
        ('slurm_train.sh', 'PARTITION JOB_NAME CONFIG WORK_DIR'),
        ('slurm_test.sh', 'PARTITION JOB_NAME CONFIG CHECKPOINT'),
    ],
)
def test_usage(script, words):
    done = run_script('bash', TOOLS / script, 'one')
    assert done.returncode == 2
    assert done.stderr.startswith(f'Usage: tools/{script} {words}')


def echo(path):
    """Writes a program that says its arguments, one a line."""
    path.parent.mkdir()
    path.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    path.chmod(0o755)
    return path


def test_dist_test(tmp_path):
    done = run_script(
        'bash', TOOLS / 'dist_test.sh', 'cfg.py', 'c.pth', 8, '--out', 'a b',
        PYTHON=str(echo(tmp_path / 'bin' / 'python')), NNODES='2',
        NODE_RANK='1', MASTER_ADDR='10.0.0.1', PORT='1234',
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        '-m', 'torch.distributed.run', '--nnodes=2', '--node_rank=1',
        '--master_addr=10.0.0.1', '--master_port=1234', '--nproc_per_node=8',
        f'{TOOLS}/test.py', 'cfg.py', 'c.pth', '--launcher', 'pytorch',
        '--out', 'a b',
    ]  # fmt: skip


@pytest.fixture
def slurm(tmp_path):
    """A PATH with an srun that says its arguments."""
    srun = echo(tmp_path / 'bin' / 'srun')
    return f'{srun.parent}:{os.environ["PATH"]}'


def test_slurm_train(slurm):
    done = run_script(
        'bash', TOOLS / 'slurm_train.sh', 'gpu', 'job', 'cfg.py', 'a dir',
        '--cfg-options', 'a=[1, 2]', PATH=slurm, GPUS='4',
        SRUN_ARGS='--quotatype=spot --async', PYTHON='python',
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        '-p', 'gpu', '--job-name=job', '--gres=gpu:4', '--ntasks=4',
        '--ntasks-per-node=4', '--cpus-per-task=5', '--kill-on-bad-exit=1',
        '--quotatype=spot', '--async', 'python', '-u', f'{TOOLS}/train.py',
        'cfg.py', '--work-dir=a dir', '--launcher=slurm', '--cfg-options',
        'a=[1, 2]',
    ]  # fmt: skip


def test_slurm_test(slurm):
    done = run_script(
        'bash', TOOLS / 'slurm_test.sh', 'gpu', 'job', 'cfg.py', 'c.pth',
        '--tta', PATH=slurm, GPUS='16', PYTHON='python',
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[3:6] == ['--gres=gpu:8', '--ntasks=16', '--ntasks-per-node=8']
    assert lines[-7:] == [
        'python', '-u', f'{TOOLS}/test.py', 'cfg.py', 'c.pth',
        '--launcher=slurm', '--tta',
    ]  # fmt: skip
