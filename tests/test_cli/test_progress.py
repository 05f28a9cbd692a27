"""Progress of experiments: the time left, and the live table."""

import io
import sys
from collections import deque

import pytest

from sift_mm.cli import progress
from sift_mm.cli.progress import Board, Job, duration, open_view


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
    """Return a job with a log."""
    found = Job(name)
    log = tmp_path / f'{name}.log'
    log.write_text('before\n')
    found.begin('train', log, len('before\n'))
    with log.open('a') as stream:
        stream.writelines(lines)
    found.read_log()
    return found


STEP = 'x - INFO - Epoch(train) [2][3/9]  lr: 1e-3  eta: {}  loss: 1.0\n'


def test_the_time_left(clock, tmp_path):
    board = Board(deque('cd'))
    assert board.seconds_left() is None
    one = job('a', tmp_path, STEP.format('0:00:50'), 'Epoch(train) cut')
    two = job('b', tmp_path, STEP.format('1 day, 0:01:40'))
    assert one.eta == 50 and two.eta == 24 * 3600 + 100
    assert one.news[-1].startswith('  a/train: Epoch(train) [2][3/9]')
    clock.now = 10
    board.running = [one]
    # One has 50 s left and two others take 60 s each.
    assert board.seconds_left() == 50 + 2 * 60
    two.step = STEP.format('0:01:40')
    board.running.append(two)
    # (60 + 110) / 2 = 85 s for each of two others: 50 + 100 + 170 by two.
    assert board.seconds_left() == (50 + 100 + 2 * 85) / 2
    clock.now = 40
    board.end(one)
    # Two expects 100 s yet; a finished run took 40 s.
    assert board.seconds_left() == 100 + 2 * 40
    assert board.summary() == '1 of 4 runs done, about 0:03:00 left'
    board.end(two, failed=True)
    board.todo.clear()
    assert board.summary() == '1 of 2 runs done, 1 failed'
    assert board.seconds_left() == 0
    assert duration(None) == '-' and duration(3725.4) == '1:02:05'


def test_a_terminal_shows_a_table_under_the_results(
    clock, tmp_path, monkeypatch
):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, 'stdout', terminal := Terminal())
    monkeypatch.setenv('TERM', 'xterm')
    monkeypatch.setenv('COLUMNS', '100')
    board = Board(deque('c'), [job('a', tmp_path, STEP.format('0:00:50'))])
    with open_view() as view:
        view.show(board)
        view._live.refresh()  # A thread does so four times a second.
        board.end(*board.running)
        board.running = [job('[b]', tmp_path)]
        view.say('a: {"top1": 1}', board)
    shown = terminal.getvalue()
    table, _, rest = shown.partition('a: {"top1": 1}')
    assert '0 of 2 runs done, about 0:01:40 left' in table
    assert 'a/train' in table and '0:00:50' in table and 'loss' in table
    assert '1 of 3 runs done' in rest and '[b]/train' in rest
    assert 'Starting' not in shown


def test_lines_without_a_terminal(clock, tmp_path, capsys):
    board = Board(deque(), [job('a', tmp_path, STEP.format('0:00:50'))])
    with open_view() as view:
        view.show(board)
        view.show(board)
        board.end(*board.running)
        view.say('a: {}', board)
    start, step, *ends = capsys.readouterr().out.splitlines()
    assert start == 'Starting a/train' and step.startswith('  a/train: Epoch')
    assert ends == ['a: {}', '1 of 1 runs done']
