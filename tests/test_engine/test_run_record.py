"""run.json and the first and last lines of a training's log."""

import errno
import json
import logging
import re
from pathlib import Path

import pytest
from mmengine.hooks import Hook

from helpers.sparse_runs import final, load, sparse_config
from helpers.toy_runs import hook_of, toy_runner
from sift_mm.cli import get_flops, train
from sift_mm.engine import run_record, start_log
from sift_mm.engine.run_record import RunRecordHook, order_of

LINE = re.compile(r'^\d{4}/\d\d/\d\d [\d:]{8} - mmengine - (\w+) - (.*)')
STEP = 'Epoch(train)', 'Iter(train)'


def log_of(work_dir, run=-1):
    """Return the lines of a log, by default the newest, without times."""
    lines = sorted(work_dir.glob('*/*.log'))[run].read_text().splitlines()
    # A line without a time belongs to the one before.
    return [found[2] if (found := LINE.match(x)) else '' for x in lines]


def record_of(work_dir):
    path = sorted(work_dir.glob('*/run.json'))[-1]
    return json.loads(path.read_text())


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'mmpretrain'])
def test_a_dense_log_is_short_and_says_what_ran(runs, scope):
    folder = runs[scope].work_dir  # Other tests may test there, later.
    lines = log_of(folder, 0)
    first = next(i for i, text in enumerate(lines) if text.startswith(STEP))
    assert first <= 11
    heads = [text.partition(':')[0] for text in lines]
    for head in ('Config', 'Model', 'Member', 'Data', 'Schedule', 'Work dir'):
        assert head in heads[:first]
    assert heads[-5:] == ['Result', 'FLOPs', 'Density', 'Seconds', 'Report']
    assert lines[-1] == f'Report: sift-report {folder}'
    log = '\n'.join(lines)
    environment = min(folder.glob('*/environment.txt')).read_text()
    for text in (
        'PyTorch compiling',
        'Config:\n',
        'Hooks will',
        '.weight - (',
    ):
        assert environment.count(text) >= 1 and text not in log
    record = record_of(folder)
    assert record['status'] == 'finished' and record['member'] == {}
    assert record['masks'] == {} and record['seed'] == 0
    assert record['active_parameters'] == record['parameters']
    assert record['flops']['ratio'] == record['flops']['training_ratio'] == 1
    assert set(record['best']) <= set(record['metrics']) != set()


def test_the_record_of_a_resumed_sparse_run(data, tmp_path, capsys):
    config = sparse_config(tmp_path / 'c', 'mmpretrain', data['mmpretrain'])
    work_dir = tmp_path / 'run'
    argv = [config, '--work-dir', str(work_dir)]
    train.main(argv)
    first = record_of(work_dir)
    saved = final(work_dir)
    masks = saved['sparse_training']['masks'].values()
    size = sum(mask.numel() for mask in masks)
    active = sum(int(mask.sum()) for mask in masks)
    assert first['masks'] == dict(
        algorithm='RigL',
        nominal=0.75,
        solved=pytest.approx(saved['sparse_training']['budget']['sparsity']),
        active=active,
        size=size,
    )
    weights = saved['state_dict'].items()
    parameters = sum(
        value.numel()
        for name, value in weights
        if not name.endswith(('running_mean', 'running_var', 'tracked'))
    )
    assert first['parameters'] == parameters
    assert first['active_parameters'] == parameters - size + active
    assert first['member']['family'] == 'wide'

    capsys.readouterr()
    get_flops.main([config, '--json'])
    report = json.loads(capsys.readouterr().out)
    total = report['comparison']['total']
    assert first['flops']['inference'] == pytest.approx(total['flops'])
    assert first['flops']['dense'] == total['flops_of_dense']
    # Without auxiliary heads, and of one size: get_flops counts the same.
    steps = report['training']['flops_per_sample']
    assert first['flops']['training_ratio'] == pytest.approx(
        steps['RigL'] / steps['dense']
    )

    (work_dir / 'epoch_3.pth').unlink()
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'epoch_2.pth'))
    train.main([*argv, '--resume'])
    second = record_of(work_dir)
    assert len([*work_dir.glob('*/run.json')]) == 2
    changed = {'started', 'seconds', 'metrics', 'best'}
    assert {k: v for k, v in second.items() if k not in changed} == {
        k: v for k, v in first.items() if k not in changed
    }
    before, after = (
        load(work_dir / f'epoch_{n}.pth')['meta'][run_record.SECONDS]
        for n in (2, 3)
    )
    assert 0 < before < after <= second['seconds'] + 0.001


class Clock:
    """Clock that is a second later at each call."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        self.now += 1
        return self.now


class Stop(Hook):
    """Hook that breaks a run off in its second epoch."""

    def before_train_iter(self, runner, *_, **__):
        if runner.iter == 6:
            raise KeyboardInterrupt


def run(work_dir, *hooks, **options):
    runner = toy_runner(work_dir, epochs=2, log_level='INFO', **options)
    for hook in hooks:
        runner.register_hook(hook)
    runner.train()
    return runner


def test_seconds_go_on_in_a_resumed_run(tmp_path, monkeypatch):
    monkeypatch.setattr(run_record, 'time', Clock())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / 'a', Stop(), RunRecordHook())
    # An epoch starts the clock; four iterations and the checkpoint read it.
    assert final(tmp_path / 'a')['meta']['training_seconds'] == 5
    found = record_of(tmp_path / 'a')
    assert found['status'] == 'running' and found['seconds'] == 0
    runner = run(tmp_path / 'a', RunRecordHook(), resume=True)
    found = record_of(tmp_path / 'a')
    assert found['status'] == 'finished' and found['seconds'] == 10
    masks = hook_of(runner).trainer.masks
    assert found['masks']['active'] == sum(masks.counts().values()) == 64
    assert found['flops'].keys() == {'of'}  # A toy has no images.


def test_active_weights_are_counted_at_the_end(tmp_path):
    runner = run(tmp_path, RunRecordHook(), hook=dict(algorithm='GMP'))
    found = record_of(tmp_path)
    # GMP begins with all 128 weights, and ends with half of them.
    masks = hook_of(runner).trainer.masks
    assert found['masks']['active'] == masks['hidden.weight'].sum() == 64
    assert found['parameters'] - found['active_parameters'] == 64
    assert any(x.startswith('Density: 0.500000') for x in log_of(tmp_path))


def test_metrics_and_the_best_of_them(tmp_path):
    runner = toy_runner(tmp_path)
    hook = RunRecordHook()
    hook.record = dict(metrics={}, best={}, parameters=1)
    for top, loss in ((50.0, 0.5), (70.0, 0.2), (60.0, float('nan'))):
        metrics = {'accuracy/top1': top, 'loss': loss, 'shape': top, 'x': 'y'}
        hook.after_val_epoch(runner, metrics)
    found = record_of(tmp_path)
    assert found['metrics'] == {
        'accuracy/top1': 60,
        'loss': None,
        'shape': 60,
    }
    # No name says that a shape should be high.
    assert found['best'] == {'accuracy/top1': 70, 'loss': 0.2}
    assert (order_of('mIoU'), order_of('NME')) == (1, 0)
    assert order_of('text/bits_per_byte') == -1


def test_a_full_disk_stops_no_training(tmp_path, monkeypatch):
    def full(path, mode):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(run_record, 'written_whole', full)
    run(tmp_path, RunRecordHook())
    text = '\n'.join(log_of(tmp_path))
    assert text.count('run.json cannot be written (No space left') == 1
    assert 'Seconds:' in text and Path(tmp_path, 'epoch_2.pth').exists()
    log = start_log.StartLog()
    log._path = tmp_path / 'none' / 'environment.txt'
    log.write('lost')  # No error.


def test_the_seed_is_that_of_the_resumed_run(tmp_path):
    resumed = dict(resume=True, randomness=dict(seed=None))
    first = run(tmp_path, RunRecordHook(), randomness=dict(seed=7)).seed
    assert run(tmp_path, RunRecordHook(), **resumed).seed == first == 7
    assert [
        json.loads(path.read_text())['seed']
        for path in sorted(tmp_path.glob('*/run.json'))
    ] == [7] * len([*tmp_path.glob('*/run.json')])
    assert 'Seed: 7, of the resumed run' in '\n'.join(log_of(tmp_path))


@pytest.mark.parametrize(
    'note', ['paramwise_options -- a:lr=1', 'Exp name: a', 'Exp name is kept']
)
def test_notes_of_mmengine_are_in_the_file(note):
    log = start_log.StartLog()
    log.building = False
    record = logging.makeLogRecord(dict(msg=note, levelno=logging.INFO))
    assert log.takes(record) is (note != 'Exp name is kept')


def test_debugging_keeps_the_whole_log(data, tmp_path):
    more = "log_level = 'DEBUG'\ntrain_cfg['max_epochs'] = 1\n"
    config = sparse_config(
        tmp_path / 'c', 'mmpretrain', data['mmpretrain'], more
    )
    train.main([config, '--work-dir', str(tmp_path / 'run')])
    text = next(tmp_path.glob('run/*/*.log')).read_text()
    assert 'Hooks will be executed' in text and 'System environment' in text
    assert not [*tmp_path.glob('run/*/environment.txt')]
