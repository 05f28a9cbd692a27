"""Progress of experiments: the time left, rows of a terminal, lines."""

import io
import sys
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from sift_mm.cli import progress
from sift_mm.cli.progress import Board, Job


class Clock:
    now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, 'time', clock)
    return clock


def job(name, tmp_path, *lines):
    """Return a job with a log, after it was read."""

    def log(tool):
        return tmp_path / f'{name}-{tool}.log'

    log('train').write_text('before\n')
    found = Job(SimpleNamespace(name=name, log=log), Future)
    with log('train').open('a') as stream:
        stream.writelines(['x\n', *lines])
    assert not found.advance()
    return found


STEP = 'x - INFO - Epoch(train) [2][3/9]  lr: 1e-3  eta: 0:00:50  loss: 1.0\n'


def test_the_time_left_is_that_of_the_runs_that_ended(clock, tmp_path):
    board = Board(5, 4)
    assert board.summary() == '1 of 5 runs done'
    clock.now = 40
    board.end(job('a', tmp_path), '')
    assert board.summary() == '2 of 5 runs done, about 0:02:00 left'
    clock.now = 50
    board.end(job('b', tmp_path), '', failed=True)
    assert board.summary() == '2 of 5 runs done, 1 failed, about 0:00:50 left'


def test_a_terminal_shows_rows_under_the_results(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, 'stdout', terminal := Terminal())
    monkeypatch.setenv('TERM', 'xterm')
    monkeypatch.setenv('COLUMNS', '120')
    board = Board(3, 3)
    running = job('a', tmp_path, STEP)
    with board.rows:
        board.show([running])
        board.rows.refresh()  # A thread does so ten times a second.
        board.end(running, '{"top1": 1}')
        board.show([job('[b]', tmp_path)])
    shown = terminal.getvalue()
    rows, _, rest = shown.partition('a: {"top1": 1}')
    assert '0 of 3 runs done' in rows and 'a/train' in rows
    assert 'eta: 0:00:50' in rows and 'loss' in rows
    assert '1 of 3 runs done' in rest and '[b]/train' in rest
    assert 'Starting' not in shown


def test_lines_without_a_terminal(tmp_path, capsys):
    board, running = Board(1, 1), job('a', tmp_path, STEP, 'Epoch(train) cut')
    board.show([running])
    board.show([running])
    board.end(running, '{}')
    start, step, *ends = capsys.readouterr().out.splitlines()
    assert start == 'Starting a/train'
    assert step.startswith('  a/train: Epoch(train) [2][3/9]')
    assert ends == ['a: {}', '1 of 1 runs done']


def test_a_step_is_cut_behind_a_value(tmp_path):
    step = f'Iter(train) [1/9]  {"x" * 60}  loss: 2.3054'
    assert job('a', tmp_path, f'{step}\n').step == step
    assert job('b', tmp_path, f'{step}  acc: {"9" * 60} z\n').step == step
