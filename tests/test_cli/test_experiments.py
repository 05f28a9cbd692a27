"""Experiments: what is trained, tested, resumed, done again, left alone."""

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.fake_tools import new_calls
from sift_mm.cli import experiments
from sift_mm.cli.experiments import Experiment, run_experiments
from sift_mm.errors import UserError

pytestmark = pytest.mark.usefixtures('standins')


def plan(*names):
    return [Experiment(Path('runs'), name, 'net_2e.py') for name in names]


def tools():
    return [tool for tool, *_ in new_calls()]


@pytest.fixture(autouse=True)
def configs(standins):
    Path('base.py').write_text('train_cfg = dict(max_epochs=2)')
    Path('net_2e.py').write_text("_base_ = 'base.py'")


@pytest.fixture
def run(configs):
    """Return an experiment that is done."""
    (found,) = plan('net')
    run_experiments([found])
    assert tools() == ['train', 'test'] and found.is_done()
    return found


def test_finished_runs_are_kept_also_in_a_moved_folder(run, capsys):
    capsys.readouterr()
    run_experiments([run])
    assert tools() == [] and capsys.readouterr().out == '0 runs to do\n'
    Path('runs').rename('moved')
    moved = replace(run, root=Path('moved'))
    assert moved.is_done()
    moved.result.unlink()
    run_experiments([moved])
    assert tools() == ['test'] and moved.is_done()
    # A run from before plans were kept.
    for name in ('plan.txt', 'trained.txt'):
        (moved.folder / name).unlink()
    assert moved.is_done()


def test_an_unfinished_training_is_resumed(run):
    (run.folder / 'epoch_2.pth').unlink()
    assert run.is_done()  # it was tested
    run.result.unlink()
    run_experiments([run])
    assert tools() == ['train', 'test'] and run.is_done()
    (run.folder / 'trained.txt').unlink()
    run.result.unlink()
    Path('misbehave.py').write_text('sys.exit(1)')
    with pytest.raises(UserError, match='^1 runs failed. net/train failed'):
        run_experiments([run])
    assert tools() == ['train'] and not run.is_done()


def test_a_training_without_a_checkpoint_is_said():
    Path('misbehave.py').write_text('sys.exit(0)')
    with pytest.raises(
        UserError, match='net left no checkpoint; see runs/net/'
    ):
        run_experiments(plan('net'))
    assert tools() == ['train']
    said = '^2 runs failed. a left no checkpoint.*\nb left no checkpoint'
    with pytest.raises(UserError, match=said):
        run_experiments(plan('a', 'b'))


@pytest.mark.parametrize('what', ['net_2e.py', 'base.py', 'options'])
def test_a_run_of_another_plan_is_set_aside(run, capsys, what):
    (run.folder / 'mine.txt').write_text('kept')
    (again,) = plan('net')
    if what == 'options':
        again = replace(run, cfg_options=('a=1',))
    else:
        with Path(what).open('a') as file:
            file.write('\nseed = 1')
        experiments.content_of.cache_clear()
    assert not again.is_done()
    run_experiments([again])
    assert tools() == ['train', 'test'] and again.is_done()
    (aside,) = Path('runs').glob('old-net-*')
    assert (aside / 'mine.txt').exists()
    assert f'the run is in {aside}.' in capsys.readouterr().out


def test_one_that_is_killed_stops_no_other_and_goes_on(capsys):
    runs = plan('a/seed0', 'b/seed0', 'c/seed0')
    Path('misbehave.py').write_text(
        "print('Epoch(train) [1] and more', flush=True)\n"
        "if 'b/seed0' in str(folder):\n"
        "    print('about to die', flush=True)\n"
        '    os.kill(os.getpid(), signal.SIGKILL)'
    )
    log = Path('runs/b/seed0/train.log')
    with pytest.raises(UserError, match=f'^1 runs failed. .*{log}'):
        run_experiments(runs, jobs=2, threads=3)
    said = capsys.readouterr()
    assert said.out.startswith('3 runs to do')
    assert '\na/seed0: {"acc' in said.out and '\nc/seed0: {"acc' in said.out
    assert said.out.count('/train: Epoch(train) [1] and more\n') == 3
    assert said.err == log.read_text() and 'about to die' in said.err
    new_calls()
    Path('misbehave.py').unlink()
    run_experiments(runs, threads=3)
    assert capsys.readouterr().out.startswith('1 runs to do')
    (_, threads, *words), _ = new_calls()
    assert threads == '3' and 'about to die' in log.read_text()
    assert words == [
        *('net_2e.py', '--resume', '--work-dir=runs/b/seed0'),
        *('--cfg-options', 'default_hooks.checkpoint.max_keep_ckpts=2'),
    ]


# Deaf to SIGTERM, as its child is, which stands for a data loader.
STUBBORN = """
import subprocess
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])
(folder / 'part').write_text(f'{os.getpid()} {child.pid}')
os.rename(folder / 'part', folder / 'pids')
time.sleep(60)
"""


def is_gone(pid):
    """Return whether a process has ended, perhaps not waited for."""
    try:
        status = Path(f'/proc/{pid}/stat').read_text()
    except (ProcessLookupError, FileNotFoundError):
        return True
    return status.rpartition(')')[2].split()[0] == 'Z'


def wait_for(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(
    ('number', 'raised'),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)],
)
def test_a_signal_ends_all_that_run_and_starts_no_other(
    number, raised, monkeypatch
):
    Path('misbehave.py').write_text(STUBBORN)
    monkeypatch.setattr(experiments, 'GRACE_SECONDS', 0.2)

    def interrupt():
        wait_for(lambda: len([*Path('runs').glob('*/pids')]) == 2)
        os.kill(os.getpid(), number)

    # A shell lets what it runs in the background ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.getsignal(number)
    with ThreadPoolExecutor() as pool, pytest.raises(raised):
        pool.submit(interrupt)
        run_experiments(plan(*'abc'), jobs=2)
    assert signal.getsignal(number) is before
    for path in Path('runs').glob('*/pids'):
        for pid in map(int, path.read_text().split()):
            wait_for(lambda pid=pid: is_gone(pid))
    assert {path.name for path in Path('runs').iterdir()} == {'a', 'b'}


def test_a_killed_plan_leaves_a_run_that_no_other_touches():
    Path('misbehave.py').write_text(STUBBORN)
    forked = os.fork()
    if not forked:
        run_experiments(plan('a'))
    wait_for(Path('runs/a/pids').exists)
    os.kill(forked, signal.SIGKILL)
    os.waitpid(forked, 0)
    pids = [int(pid) for pid in Path('runs/a/pids').read_text().split()]
    try:
        with pytest.raises(UserError, match='still runs a/train: wait for it'):
            run_experiments(plan('a'))
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    for pid in pids:
        wait_for(lambda pid=pid: is_gone(pid))
    Path('misbehave.py').unlink()
    run_experiments(plan('a'))
    assert tools() == ['train', 'train', 'test']


def test_seconds_are_those_of_the_steps_that_count(run):
    # 10 steps of 0.5 s and 20 of 1.5 s.
    assert run.seconds() == 35
    # It was interrupted after step 30 and went on from step 15.
    logs = run.folder / '20260102_000000/vis_data'
    logs.mkdir(parents=True)
    records = [dict(step=s, loss=1, time=2) for s in (20, 30, 40)]
    (logs / 'scalars.json').write_text('\n'.join(map(json.dumps, records)))
    assert run.seconds() == 10 * 0.5 + 30 * 2


def test_a_config_that_is_not_there_is_said():
    with pytest.raises(UserError, match='no config file none.py'):
        run_experiments([Experiment(Path('runs'), 'net', 'none.py')])
