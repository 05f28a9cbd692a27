"""Tools in processes of their own: logs, failures, and how they end."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from sift_mm.errors import Mistake
from sift_mm.experiments import processes
from sift_mm.experiments.processes import Tools


def test_one_that_fails_says_where_its_log_is(tmp_path, capsys):
    log = tmp_path / 'broken.log'
    with pytest.raises(Mistake, match='^broken failed.*/broken.log'):
        Tools().run(
            'broken', log, '-c', 'print("... Epoch(train) [1]"); 1 / 0'
        )
    caught = capsys.readouterr()
    assert caught.out == '  broken: Epoch(train) [1]\n'
    assert 'ZeroDivisionError' in caught.err
    assert 'ZeroDivisionError' in log.read_text()


def test_a_second_attempt_keeps_the_log_of_the_first(tmp_path):
    log = tmp_path / 'twice.log'
    with pytest.raises(Mistake):
        Tools().run('first', log, '-c', 'print("first"); 1 / 0')
    threads = 'import os; print(os.environ["OMP_NUM_THREADS"])'
    Tools(threads=3).run('second', log, '-c', threads)
    first, *_, second = log.read_text().splitlines()
    assert (first, second) == ('first', '3')


# Its child stands for a data loader; both are deaf to SIGTERM.
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])
open('pids.part', 'w').write(f'{os.getpid()} {child.pid}')
os.rename('pids.part', 'pids')
time.sleep(60)
"""


def test_all_that_run_end_and_no_other_starts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(processes, 'GRACE', 0.2)
    tools, log = Tools(), tmp_path / 'log'
    with ThreadPoolExecutor() as pool:
        future = pool.submit(tools.run, 'deaf', log, '-c', STUBBORN)
        while not (tmp_path / 'pids').exists():
            assert not future.done()
            time.sleep(0.01)
        tools.stop()
        assert 'deaf failed' in str(future.exception())
    end = time.monotonic() + 30  # By themselves they end after 60.
    for pid in (tmp_path / 'pids').read_text().split():
        while not is_gone(int(pid)):  # It dies after its files are closed.
            assert time.monotonic() < end
            time.sleep(0.01)
    with pytest.raises(Mistake, match='late was not started'):
        tools.run('late', log, '-c', 'open("late", "w")')
    assert not (tmp_path / 'late').exists()


def is_gone(pid):
    """Whether a process has ended, if perhaps nobody has asked how."""
    try:
        os.kill(pid, 0)
        with open(f'/proc/{pid}/stat') as file:
            return file.read().rpartition(')')[2].split()[0] == 'Z'
    except (ProcessLookupError, FileNotFoundError):
        return True
