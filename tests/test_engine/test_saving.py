"""Whatever ends a run, a whole checkpoint of it is left."""

import os
import random
import resource
import signal
import time
import traceback
from contextlib import contextmanager, suppress
from pathlib import Path

import mmengine
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook

from helpers.runs import forget_instances
from helpers.sparse_runs import sparse_config
from helpers.toy_runs import assert_same, final_state, toy_runner
from sift_mm.checkpoint import writing
from sift_mm.checkpoint.writing import locked, written_whole
from sift_mm.cli import train
from sift_mm.engine.saving import (
    WholeFileBackend,
    lock_work_dir,
    use_safe_files,
)
from sift_mm.errors import UserError

use_safe_files()
# Kills of the test at random moments; `make attack` has more of them.
KILLS = int(os.environ.get('SIFT_MM_KILLS', 4))


def names(folder):
    return sorted(p.name for p in Path(folder).glob('*.pth*'))


def runner_of(work_dir, saved=None, epochs=4, **kwargs):
    return toy_runner(
        work_dir,
        dict(end=1.0, execution='dense'),
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', interval=1, **(saved or {}))
        ),
        epochs=epochs,
        **kwargs,
    )


@contextmanager
def no_file_above(size):
    """Limit the size of files, as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize('there', [True, False])
def test_what_fails_while_it_is_written_leaves_what_was_there(tmp_path, there):
    path = tmp_path / 'file.pth'
    backend = WholeFileBackend()
    if there:
        backend.put(b'old', path)
    with no_file_above(1000), pytest.raises(UserError, match='file.pth could'):
        backend.put(bytes(2000), path)
    assert [p.name for p in tmp_path.iterdir()] == ['file.pth'] * there
    assert not there or path.read_bytes() == b'old'


@pytest.mark.parametrize('name', ['metrics.yml', 'metrics.pkl'])
def test_what_mmengine_dumps_is_there_wholly_or_not_at_all(tmp_path, name):
    path = tmp_path / name
    mmengine.dump({'mIoU': 40.0}, str(path))
    many = {f'mIoU {i}': 50.0 for i in range(1000)}
    with no_file_above(1000), pytest.raises(UserError, match=name):
        mmengine.dump(many, str(path))
    assert mmengine.load(str(path)) == {'mIoU': 40.0}
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_has_the_rights_that_others_have(tmp_path):
    with written_whole(tmp_path / 'a', 'w') as stream:
        stream.write('x')
    (tmp_path / 'b').write_text('x')
    assert (tmp_path / 'a').stat().st_mode == (tmp_path / 'b').stat().st_mode


def test_two_that_write_one_file_write_beside_each_other(tmp_path):
    path = tmp_path / 'epoch_1.pth'
    with written_whole(path) as first:
        first.write(b'1' * 10)
        with written_whole(path) as second:
            second.write(b'2' * 5)
            assert len(names(tmp_path)) == 2
        assert path.read_bytes() == b'22222'
        first.write(b'1' * 10)
    assert path.read_bytes() == b'1' * 20
    assert names(tmp_path) == ['epoch_1.pth']


def test_a_link_that_waits_is_not_written_through(tmp_path, monkeypatch):
    monkeypatch.setattr(writing.secrets, 'token_hex', lambda _: '0' * 16)
    (tmp_path / f'a.pth.{"0" * 16}.part').symlink_to(tmp_path / 'other')
    with pytest.raises(FileExistsError), written_whole(tmp_path / 'a.pth'):
        pass
    assert not (tmp_path / 'other').exists()
    (tmp_path / '.lock').symlink_to(tmp_path / 'other')
    with pytest.raises(UserError, match='cannot be written'), locked(tmp_path):
        pass
    assert not (tmp_path / 'other').exists()


@pytest.fixture
def other_run(tmp_path):
    """Start a process that holds the work dir, and a lasting worker."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        with locked(tmp_path / 'run'):
            worker = os.fork()
            if worker:
                os.write(writing, str(worker).encode())
            signal.pause()
    worker = int(os.read(reading, 20))
    yield pid
    for left in (worker, pid):
        with suppress(ProcessLookupError):
            os.kill(left, signal.SIGKILL)


def test_a_work_dir_has_one_run_until_that_ends_or_is_killed(
    tmp_path, other_run
):
    folder = tmp_path / 'run'
    words = f'Another run is at work in {folder} .process {other_run} on '
    for name in ('epoch_1.pth.part', f'last_checkpoint.{"0a" * 8}.part'):
        (folder / name).write_text('of a run that was killed')
    kept = ['a.part', 'epoch_1.pth']
    for name in kept:
        (folder / name).write_text('')
    with pytest.raises(UserError, match=words), locked(folder):
        pass
    with locked(tmp_path / 'elsewhere'):
        pass
    os.kill(other_run, signal.SIGKILL)
    os.waitpid(other_run, 0)
    with locked(folder), locked(folder):
        assert sorted(p.name for p in folder.iterdir()) == ['.lock', *kept]
        assert end_of(forked(locked(folder))) == 1
    assert end_of(forked(locked(folder))) == 0


def forked(context):
    pid = os.fork()
    if not pid:
        try:
            with context:
                os._exit(0)
        finally:
            os._exit(1)
    return pid


@pytest.mark.parametrize(
    'launcher, variable',
    [('none', None), ('pytorch', 'RANK'), ('slurm', 'SLURM_PROCID')],
)
def test_the_first_process_holds_the_work_dir_for_all(
    tmp_path, other_run, monkeypatch, launcher, variable
):
    cfg = Config(dict(launcher=launcher, work_dir=str(tmp_path / 'run')))
    for name in ('RANK', 'SLURM_PROCID'):
        monkeypatch.setenv(name, '1')
    if variable:
        with lock_work_dir(cfg):
            pass
        monkeypatch.setenv(variable, '0')
    with pytest.raises(UserError, match='Another run'), lock_work_dir(cfg):
        pass


def test_the_command_line_refuses_a_work_dir_at_work(
    tmp_path, other_run, capsys, data
):
    config = sparse_config(tmp_path / 'c', 'mmpretrain', data['mmpretrain'])
    with pytest.raises(SystemExit) as stop:
        train.main([config, '--work-dir', str(tmp_path / 'run')])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith('Another run is at work in ')
    assert [p.name for p in (tmp_path / 'run').iterdir()] == ['.lock']


@pytest.mark.parametrize('saved', [{}, dict(max_keep_ckpts=1)])
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, saved):
    class Fill(Hook):
        def before_train_epoch(self, runner):
            if runner.epoch == 2:
                resource.setrlimit(
                    resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY)
                )

    whole = runner_of(tmp_path / 'whole', saved)
    whole.train()
    runner = runner_of(tmp_path / 'a', saved, custom_hooks=[Fill()])
    with no_file_above(resource.RLIM_INFINITY), pytest.raises(UserError):
        runner.train()
    assert names(tmp_path / 'a')[-1] == 'epoch_2.pth'
    assert (tmp_path / 'a/last_checkpoint').read_text().endswith('epoch_2.pth')
    resumed = runner_of(tmp_path / 'a', saved, resume=True)
    resumed.train()
    assert_same(final_state(whole), final_state(resumed))


def test_the_old_checkpoint_goes_when_the_new_one_is_whole(
    tmp_path, monkeypatch
):
    there = []
    put = WholeFileBackend.put

    def spy(self, data, path):
        there.append(names(tmp_path))
        put(self, data, path)

    monkeypatch.setattr(WholeFileBackend, 'put', spy)
    runner_of(tmp_path, dict(max_keep_ckpts=1)).train()
    assert there == [[], *([f'epoch_{i}.pth'] for i in (1, 2, 3))]
    assert names(tmp_path) == ['epoch_4.pth']


def test_the_best_checkpoint_takes_the_place_of_the_one_before(tmp_path):
    class Scored(Hook):
        """Hook that validates by hand, the last epoch twice."""

        def after_train_epoch(self, runner):
            hook = next(h for h in runner.hooks if hasattr(h, 'save_best'))
            for accuracy in [[0.1], [0.3], [0.2], [0.4, 0.5]][runner.epoch]:
                hook.after_val_epoch(runner, dict(accuracy=accuracy))

    runner_of(
        tmp_path,
        dict(save_best='accuracy', rule='greater', max_keep_ckpts=1),
        custom_hooks=[Scored()],
    ).train()
    assert names(tmp_path) == ['best_accuracy_epoch_3.pth', 'epoch_4.pth']
    other = tmp_path / 'other'
    with pytest.raises(UserError, match="save_best='top9'.*are accuracy"):
        runner_of(
            other,
            dict(save_best='top9', rule='greater'),
            custom_hooks=[Scored()],
        ).train()


def fork(work_dir, **kwargs):
    """Start a run in a process that this one can kill."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        forget_instances()
        runner = runner_of(
            work_dir, dict(max_keep_ckpts=2), epochs=12, **kwargs
        )
        runner.train()
        torch.save(final_state(runner), work_dir / 'state')
        code = 0
    except BaseException:
        with open(work_dir / 'error.txt', 'w') as file:
            traceback.print_exc(file=file)
    finally:
        os._exit(code)


def end_of(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_runs_killed_at_random_moments_come_back_and_end_equal(tmp_path):
    for name in ('whole', *(str(i) for i in range(KILLS))):
        (tmp_path / name).mkdir()
    start = time.monotonic()
    assert end_of(fork(tmp_path / 'whole')) == 0
    seconds = time.monotonic() - start
    whole = torch.load(tmp_path / 'whole/state')
    seed = random.randrange(10**6)
    print(f'seed {seed}')
    draw = random.Random(seed)
    killed = 0
    for i in range(KILLS):
        work_dir = tmp_path / str(i)
        pid = fork(work_dir)
        time.sleep(draw.uniform(0, seconds))
        number = draw.choice([signal.SIGKILL, signal.SIGTERM])
        os.kill(pid, number)
        killed += end_of(pid) == -number
        assert end_of(fork(work_dir, resume=True)) == 0, seed
        assert_same(whole, torch.load(work_dir / 'state'))
    assert killed or KILLS < 3
