"""What is trained, tested, resumed, done again, and left alone."""

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from minirun import write_config
from standins import change, new_calls

from sift_mm.errors import Mistake
from sift_mm.experiments.runner import (
    Experiment,
    config_files,
    run_experiments,
)

pytestmark = pytest.mark.usefixtures('standins')


@pytest.fixture
def run():
    """An experiment that is done."""
    Path('base.py').write_text('train_cfg = dict(max_epochs=2)')
    Path('net_2e.py').write_text("_base_ = 'base.py'")
    found = Experiment(Path('runs'), 'net', 'net_2e.py')
    run_experiments([found])
    assert tools() == ['train', 'test'] and found.is_done()
    return found


def tools():
    return [tool for tool, *_ in new_calls()]


def test_what_is_done_is_not_done_again(run, capsys):
    capsys.readouterr()
    run_experiments([run])
    assert tools() == [] and capsys.readouterr().out == '0 runs to do\n'
    # The folder may move.
    Path('runs').rename('moved')
    assert Experiment(Path('moved'), 'net', 'net_2e.py').is_done()


def test_a_network_that_was_trained_again_is_tested_again(run):
    change(run.last)
    assert not run.is_done()
    run_experiments([run])
    assert tools() == ['test'] and run.is_done()
    run.result.unlink()
    run_experiments([run])
    assert tools() == ['test'] and run.is_done()


def test_an_unfinished_training_goes_on(run):
    named = run.folder / 'last_checkpoint'
    run.last.rename(run.folder / 'epoch_1.pth')
    named.write_text('epoch_1.pth')
    run_experiments([run])
    assert tools() == ['train', 'test'] and run.is_done()
    # Nothing is named before it is wholly written.
    named.unlink()
    assert not run.is_done()
    run_experiments([run])
    assert tools() == ['train', 'test']
    assert (run.folder / 'epoch_1.pth').exists()


@pytest.mark.parametrize('what', ['net_2e.py', 'base.py', 'damaged'])
def test_what_is_out_of_date_is_trained_anew(run, capsys, what):
    (run.folder / 'mine.txt').write_text('kept')
    if what == 'damaged':
        run.last.write_bytes(b'half of it')
    else:
        # A checkpoint from before the change is not gone on from.
        (run.folder / 'last_checkpoint').write_text('epoch_1.pth')
        run.last.rename(run.folder / 'epoch_1.pth')
        change(Path(what))
    run_experiments([run])
    assert tools() == ['train', 'test'] and run.is_done()
    (aside,) = Path('runs').glob('old-net-*')
    assert (aside / 'mine.txt').exists()
    assert f'it is now in {aside}.' in capsys.readouterr().out


def test_one_that_starts_from_another_follows_it(run):
    Path('late_7i.py').write_text('train_cfg = dict(max_iters=7)')
    late = Experiment(Path('runs'), 'late', 'late_7i.py', after=run)
    run_experiments([run, late])
    assert tools() == ['train', 'test']
    change(run.last)
    run_experiments([run, late])
    assert tools() == ['test', 'train', 'test'] and late.is_done()
    run.last.unlink()
    Path('misbehave.py').write_text('sys.exit(1)')
    with pytest.raises(Mistake, match='^2 runs failed. net/train failed'):
        run_experiments([run, late])
    assert tools() == ['train']


def test_one_that_is_killed_stops_no_other_and_goes_on(capsys):
    for name in ('a_1e', 'b_1e', 'c_1e'):
        Path(f'{name}.py').write_text('train_cfg = dict(max_epochs=1)')
    runs = [
        Experiment(Path('runs'), f'{n}/seed0', f'{n}_1e.py') for n in 'abc'
    ]
    Path('misbehave.py').write_text(
        "if words[0] == 'b_1e.py':\n"
        "    print('about to die', flush=True)\n"
        '    os.kill(os.getpid(), signal.SIGKILL)'
    )
    log = Path('runs/b/seed0/train.log')
    with pytest.raises(Mistake, match=f'^1 runs failed. .*{log}'):
        run_experiments(runs, jobs=2, threads=3)
    said = capsys.readouterr()
    assert said.out.startswith('3 runs to do')
    assert '\na/seed0: {"acc' in said.out and '\nc/seed0: {"acc' in said.out
    assert said.err == log.read_text() + '\n' == 'about to die\n\n'
    new_calls()
    Path('misbehave.py').unlink()
    run_experiments(runs, threads=3)
    assert capsys.readouterr().out.startswith('1 runs to do')
    (_, threads, *words), _ = new_calls()
    assert threads == '3'
    assert words == [
        'b_1e.py',
        '--resume',
        '--work-dir=runs/b/seed0',
        '--cfg-options',
        'default_hooks.checkpoint.max_keep_ckpts=2',
    ]


def test_a_training_without_its_last_checkpoint_is_said():
    Path('net_2e.py').write_text('train_cfg = dict(max_epochs=3)')
    found = Experiment(Path('runs'), 'net', 'net_2e.py')
    with pytest.raises(Mistake, match='ended without runs/net/epoch_3.pth'):
        run_experiments([found])
    assert tools() == ['train']


@pytest.mark.parametrize(
    ('number', 'raised'),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)],
)
def test_an_interrupt_ends_what_runs_and_starts_no_other(number, raised):
    Path('net_2e.py').write_text('train_cfg = dict(max_epochs=2)')
    Path('misbehave.py').write_text(
        "(folder / 'part').write_text(str(os.getpid()))\n"
        "os.rename(folder / 'part', folder / 'pid')\n"
        'time.sleep(100)'
    )

    def interrupt():
        while len(list(Path('runs').glob('*/pid'))) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    runs = [Experiment(Path('runs'), n, 'net_2e.py') for n in 'abc']
    # As the shell has it for a job in the background.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with ThreadPoolExecutor() as pool, pytest.raises(raised):
            pool.submit(interrupt)
            run_experiments(runs, jobs=2)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    for path in Path('runs').glob('*/pid'):
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)
    # The third has not started.
    assert len(list(Path('runs').iterdir())) == 2


def test_time_is_of_the_steps_that_count(run):
    # 10 steps of 0.5 s and 20 of 1.5 s.
    assert run.seconds() == 35
    # After step 30 it was interrupted, and went on from step 15.
    logs = run.folder / '20260102_000000/vis_data'
    logs.mkdir(parents=True)
    records = [dict(step=s, loss=1, time=2) for s in (20, 30, 40)]
    (logs / 'scalars.json').write_text('\n'.join(map(json.dumps, records)))
    assert run.seconds() == 10 * 0.5 + 30 * 2
    assert [s['step'] for s in run.logged()] == [10, 1, 30, 20, 30, 40]


def test_files_of_a_config():
    Path('sub').mkdir()
    Path('a.py').write_text("_base_ = ['sub/b.py', 'mmdet::x.py']")
    Path('sub/b.py').write_text("_base_ = '../c.py'")
    Path('c.py').write_text('')
    found = [p.resolve() for p in config_files('a.py')]
    assert found == [Path(p).resolve() for p in ('a.py', 'sub/b.py', 'c.py')]
    with pytest.raises(Mistake, match='no config file none.py'):
        list(config_files('none.py'))


def test_the_last_checkpoint_follows_from_the_config(data, tmp_path):
    config = write_config(tmp_path, 'mmseg', data['mmseg'])
    for options, name in (
        (('a.b=1',), 'iter_2.pth'),
        (('a.b=1', 'train_cfg.max_iters=30'), 'iter_30.pth'),
    ):
        run = Experiment(tmp_path, 'x', config, cfg_options=options)
        assert run.last == tmp_path / 'x' / name
    Path('none.py').write_text('a = 1')
    with pytest.raises(Mistake, match='neither max_epochs nor max_iters'):
        assert Experiment(tmp_path, 'x', 'none.py').last
