"""Tests of the shell scripts: real processes, and a Slurm of our own."""

import os

import pytest
import torch

from helpers.runs import ROOT, free_port, run_script

TOOLS = ROOT / 'tools'


def test_dist_train(configs, tmp_path):
    done = run_script(
        'bash', TOOLS / 'dist_train.sh', configs['mmseg'], 2,
        '--work-dir', tmp_path,
        PORT=free_port(), CUDA_VISIBLE_DEVICES='-1',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert ' x 2, SGD lr' in log and 'mIoU' in log
    environment = next(tmp_path.glob('*/environment.txt')).read_text()
    assert 'GPU number: 2' in environment
    said = done.stdout + done.stderr
    assert said.count('communicate by gloo') == 1
    assert 'OneDL' not in said  # What a library prints as it is imported.
    words = 'SyncBN becomes BN, and every process keeps statistics of its own'
    assert said.count(words) == 1
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


@pytest.fixture
def echo(tmp_path):
    """Write a program that prints its arguments, under two names."""
    for name in ('python', 'srun'):
        path = tmp_path / name
        path.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
        path.chmod(0o755)

    def call(script, *args, **env):
        path = f'{tmp_path}:{os.environ["PATH"]}'
        env = dict(PYTHON='python', PATH=path) | env
        done = run_script('bash', TOOLS / script, *args, **env)
        return done.stdout.splitlines()

    return call


def test_dist_test(echo):
    env = dict(NNODES='2', NODE_RANK='1', MASTER_ADDR='10.0.0.1', PORT='1234')
    args = 'cfg.py', 'c.pth', 8, '--out', 'a b'
    assert echo('dist_test.sh', *args, **env) == [
        '-m', 'torch.distributed.run', '--nnodes=2', '--node_rank=1',
        '--master_addr=10.0.0.1', '--master_port=1234', '--nproc_per_node=8',
        f'{TOOLS}/test.py', 'cfg.py', 'c.pth', '--launcher', 'pytorch',
        '--out', 'a b',
    ]  # fmt: skip


def test_slurm_train(echo):
    args = 'gpu', 'job', 'cfg.py', 'a dir', '--cfg-options', 'a=[1, 2]'
    env = dict(GPUS='4', SRUN_ARGS='--quotatype=spot --async')
    assert echo('slurm_train.sh', *args, **env) == [
        '-p', 'gpu', '--job-name=job', '--gres=gpu:4', '--ntasks=4',
        '--ntasks-per-node=4', '--cpus-per-task=5', '--kill-on-bad-exit=1',
        '--quotatype=spot', '--async', 'python', '-u', f'{TOOLS}/train.py',
        'cfg.py', '--work-dir=a dir', '--launcher=slurm', '--cfg-options',
        'a=[1, 2]',
    ]  # fmt: skip


def test_slurm_test(echo):
    args = 'gpu', 'job', 'cfg.py', 'c.pth', '--amp'
    lines = echo('slurm_test.sh', *args, GPUS='16')
    assert lines[3:6] == ['--gres=gpu:8', '--ntasks=16', '--ntasks-per-node=8']
    assert lines[-7:] == [
        'python', '-u', f'{TOOLS}/test.py', 'cfg.py', 'c.pth',
        '--launcher=slurm', '--amp',
    ]  # fmt: skip
