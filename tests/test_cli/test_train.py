"""Tests of tools/train.py: its options, and real runs."""

import runpy
import sys
import tomllib
import weakref
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from mmengine.config import Config
from torch import distributed

from helpers.runs import ROOT, forget_instances, free_port
from sift_mm import backbones
from sift_mm.cli import get_flops, train
from sift_mm.cli import test as tester
from sift_mm.config import libraries, loading
from sift_mm.config.resume import find_start
from sift_mm.engine import launch, precision
from sift_mm.errors import UserError


def merged(text, *options):
    """Return the config of a file with this text and these options."""
    Path('some_config.py').write_text(text)
    args = train.parse_args(['some_config.py', *options])
    return train.merge_args(loading.load_run_config(args), args)


@pytest.mark.parametrize(
    'before, after',
    [
        ("dict(type='OptimWrapper')", 'AmpOptimWrapper'),
        ("dict(type='mmengine.OptimWrapper')", 'AmpOptimWrapper'),
        ('dict(optimizer=None)', 'AmpOptimWrapper'),
        ("dict(type='SparseOptimWrapper')", 'SparseAmpOptimWrapper'),
        ("dict(type='AmpOptimWrapper')", 'AmpOptimWrapper'),
        ("dict(type='SparseAmpOptimWrapper')", 'SparseAmpOptimWrapper'),
    ],
)
def test_amp_maps_the_wrapper(before, after):
    for scale in ('dynamic', 512.0):
        text = f'optim_wrapper = dict({before}, loss_scale={scale!r})'
        cfg = merged(text, '--amp')
        assert cfg.optim_wrapper.type == after
        assert cfg.optim_wrapper.loss_scale == scale
    cfg = merged(f'optim_wrapper = {before}', '--amp')
    assert cfg.optim_wrapper.loss_scale == 'dynamic'


@pytest.mark.parametrize(
    'before, after',
    [
        (
            "dict(type='mmengine.AmpOptimWrapper', loss_scale=512., "
            "dtype='float16', accumulative_counts=2)",
            dict(type='OptimWrapper', accumulative_counts=2),
        ),
        (
            "dict(type='SparseAmpOptimWrapper', loss_scale='dynamic')",
            dict(type='SparseOptimWrapper'),
        ),
        ("dict(type='OptimWrapper')", dict(type='OptimWrapper')),
    ],
)
def test_no_amp_leaves_what_float32_takes(before, after):
    cfg = merged(f'optim_wrapper = {before}', '--no-amp')
    assert cfg.optim_wrapper.to_dict() == after


@pytest.mark.parametrize(
    'text, words',
    [
        ("optim_wrapper = dict(type='ApexOptimWrapper')", 'ApexOptimWrapper'),
        ('a = 1', 'an optim_wrapper'),
    ],
)
def test_amp_refuses_what_it_cannot_map(text, words):
    with pytest.raises(UserError, match=words):
        merged(text, '--amp')


def test_amp_needs_an_accelerator(configs, monkeypatch):
    monkeypatch.setattr(precision, 'has_accelerator', lambda: False)
    with pytest.raises(SystemExit, match='needs an accelerator'):
        train.main([configs['mmpretrain'], '--amp'])


def test_work_dir_priority():
    assert merged('').work_dir == './work_dirs/some_config'
    assert merged("work_dir = 'x'").work_dir == 'x'
    assert merged("work_dir = 'x'", '--work-dir', 'y').work_dir == 'y'


def test_a_checkpoint_that_was_named_and_is_lost(tmp_path):
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'c.pth'))
    with pytest.raises(UserError, match='There is no checkpoint .*c.pth'):
        find_start(Config(dict(work_dir=str(tmp_path))), 'auto')


def test_auto_scale_lr():
    cfg = merged('auto_scale_lr = dict(base_batch_size=8)', '--auto-scale-lr')
    assert cfg.auto_scale_lr.enable
    with pytest.raises(UserError, match='base_batch_size'):
        merged('auto_scale_lr = dict(enable=False)', '--auto-scale-lr')


def test_no_validate():
    text = 'val_cfg = dict()\nval_dataloader = dict()\nval_evaluator = dict()'
    cfg = merged(text, '--no-validate')
    assert cfg.val_cfg is cfg.val_dataloader is cfg.val_evaluator is None


def test_loader_defaults_are_mmpretrains():
    text = 'train_dataloader = dict(num_workers={})\ndefault_scope = {!r}'
    loader = merged(text.format(2, 'mmpretrain')).train_dataloader
    assert loader.collate_fn.type == 'default_collate'
    assert loader.persistent_workers
    loader = merged(text.format(0, 'mmpretrain')).train_dataloader
    assert not loader.persistent_workers
    assert merged(text.format(2, 'mmdet')).train_dataloader == dict(
        num_workers=2
    )


def test_loader_options():
    text = 'val_dataloader = dict(pin_memory=True, persistent_workers=True)'
    options = '--no-pin-memory', '--no-persistent-workers'
    cfg = merged(text, *options)
    assert cfg.val_dataloader == dict(
        pin_memory=False, persistent_workers=False
    )
    assert 'train_dataloader' not in cfg


SWIN = """
model['backbone'] = dict(
    _delete_=True, type='SparseIFT', family='wide', sparsity=0.75,
    backbone=dict(type='SwinTransformer', arch='tiny'))
"""


@pytest.mark.parametrize('tool', [train, get_flops])
@pytest.mark.parametrize(
    'change, said',
    [
        ("['backbone']['ach'] = 'tiny'",
         r'backbone\.backbone: SwinTransformer has no argument ach: did you '),
        ("['sparsty'] = 0.5",
         r'backbone: SparseIFT has no argument sparsty: did you mean spars'),
    ],
)  # fmt: skip
def test_a_misspelt_argument_is_named(tool, change, said, configs):
    config = Path('misspelt.py')
    text = Path(configs['mmpretrain']).read_text()
    config.write_text(f"{text}{SWIN}model['backbone']{change}")
    with pytest.raises(SystemExit, match=said) as stop:
        tool.main([str(config)])
    assert '\n' not in str(stop.value)


def test_missing_library(monkeypatch):
    monkeypatch.setattr(backbones, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match='install onedl-mmdetection'):
        libraries.import_library(Config(dict(default_scope='mmdet')))


def test_missing_data_stops_first(configs, monkeypatch):
    monkeypatch.setattr(train, 'run', pytest.fail)
    argv = [configs['mmdet'], '--cfg-options']
    argv += [
        f'{phase}_dataloader.dataset.data_root=elsewhere'
        for phase in ('train', 'val')
    ]
    with pytest.raises(SystemExit, match='val2017.*make demo'):
        train.main(argv)
    # Without validation its data is not asked for.
    with pytest.raises(SystemExit, match='train2017') as stop:
        train.main([*argv[:-1], '--no-validate'])
    assert 'instances_val2017' not in str(stop.value)


def test_replaces_sync_norms_only():
    sync = dict(type='SyncBN', requires_grad=True)
    group = dict(type='GN', num_groups=2)
    cfg = Config(
        dict(model=dict(a=dict(norm_cfg=sync), b=[dict(norm_cfg=group)]))
    )
    launch.fit_to_cpu(cfg)
    assert cfg.model.a.norm_cfg == dict(type='BN', requires_grad=True)
    assert cfg.model.b[0].norm_cfg == group
    assert cfg.env_cfg.dist_cfg.backend == 'gloo'
    assert cfg.model_wrapper_cfg.device_ids is None


@pytest.fixture(scope='module')
def member(configs, tmp_path_factory):
    """Train one family; return its options and work dir."""
    folder = tmp_path_factory.mktemp('member')
    argv = [configs['mmpretrain'], '--family', 'parallel', '--no-validate']
    argv += ['--interval', '1']
    forget_instances()
    train.main([*argv, '--sparsity', '0.5', '--work-dir', str(folder)])
    return argv, folder


def test_resume_refuses_another_sparsity(member, tmp_path):
    # Sparse Parallel has two branches at 0.5 and at 0.55.
    argv, folder = member
    options = ['--sparsity', '0.55', '--work-dir', str(tmp_path)]
    checkpoint = str(folder / 'epoch_1.pth')
    with pytest.raises(SystemExit, match='sparsity=0.5 there and 0.55 here'):
        train.main([*argv, *options, '--resume', checkpoint])
    forget_instances()
    with pytest.raises(SystemExit, match='sparsity=0.5 there and 0.55 here'):
        tester.main([argv[0], checkpoint, *argv[1:3], *options])


def test_a_process_group_is_ended_once_nobody_needs_it(
    configs, tmp_path, monkeypatch
):
    # One process of a distributed run: DDP and runner are gone by then.
    env = dict(RANK='0', WORLD_SIZE='1', MASTER_ADDR='127.0.0.1')
    env |= dict(MASTER_PORT=free_port(), CUDA_VISIBLE_DEVICES='-1')
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    runners = []
    build, end = launch.build_runner, distributed.destroy_process_group
    left = []

    def build_and_see(cfg):
        runner = build(cfg)
        runners.extend(map(weakref.ref, (runner, runner.model)))
        return runner

    def end_and_see():
        left.extend(one() for one in runners)
        end()

    monkeypatch.setattr(launch, 'build_runner', build_and_see)
    monkeypatch.setattr(distributed, 'destroy_process_group', end_and_see)
    argv = [configs['mmpretrain'], '--work-dir', str(tmp_path)]
    argv += ['--launcher', 'pytorch']
    train.main(argv)
    assert left == [None, None]
    assert not distributed.is_initialized()
    forget_instances()
    checkpoint = (tmp_path / 'last_checkpoint').read_text()
    tester.main([argv[0], checkpoint, *argv[1:]])
    assert left == [None] * 6


PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']


@pytest.mark.parametrize('name', sorted(PROJECT['scripts'].values()))
def test_console_scripts_are_the_command_lines(name, monkeypatch, capsys):
    script = EntryPoint('name', name, 'console_scripts').load()
    monkeypatch.setattr(sys, 'argv', ['command', '--help'])
    with pytest.raises(SystemExit) as stop:
        script()
    assert stop.value.code == 0
    assert 'usage: command' in capsys.readouterr().out


def test_scripts_are_the_command_lines():
    commands = PROJECT['scripts'].values()
    modules = {command.partition(':')[0] for command in commands}
    for path in (ROOT / 'tools').rglob('*.py'):
        if path.name not in ('setup_env.py', 'build_mmcv.py'):
            main = runpy.run_path(str(path))['main']
            assert main.__module__ in modules
