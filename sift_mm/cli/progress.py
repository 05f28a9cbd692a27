"""Progress of experiments: a live table, or lines without a terminal."""

import re
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sift_mm.errors import UserError

# MMEngine's line of a step, and the time left in it.
STEP = re.compile(r'(Epoch|Iter)\(.{,90}')
ETA = re.compile(r'eta: (?:(\d+) days?, )?(\d+):(\d\d):(\d\d)')
# Parts of it that the table leaves out.
TIMES = re.compile(rf'{ETA.pattern}|(data_)?time: [\d.]+')


def duration(seconds: float | None) -> str:
    """Return hours, minutes and seconds, '-' for None.

    >>> duration(3725.4)
    '1:02:05'
    """
    return '-' if seconds is None else str(timedelta(seconds=int(seconds)))


class Job:
    """Experiment that runs, with the log of its command.

    Attributes:
        name (str): Name of the experiment.
        experiment (Any): The experiment.
        title (str): Name and command, or '' before the first command.
        step (str): Newest line of a step.
        news (list[str]): Lines that no view has shown.
    """

    experiment: Any = None

    def __init__(self, name: str) -> None:
        self.name = name
        self.title = self.step = ''
        self.news: list[str] = []
        self.started = time.monotonic()
        self._log: Path | None = None
        self._shown = 0

    def advance(self) -> bool:
        """Read progress and go on; return whether all is done.

        Raises:
            UserError: If it failed.
        """
        raise NotImplementedError

    def begin(self, tool: str, log: Path, start: int) -> None:
        """Follow the log of the next command from a place on."""
        self.title, self.step = f'{self.name}/{tool}', ''
        self._log, self._shown = log, start
        self.news.append(f'Starting {self.title}')

    def read_log(self) -> None:
        """Read the new lines of the log."""
        if self._log is None or not self._log.exists():
            return
        with self._log.open('rb') as stream:
            stream.seek(self._shown)
            lines, _, _ = stream.read().rpartition(b'\n')  # whole lines
        self._shown += len(lines)
        for line in lines.decode(errors='replace').splitlines():
            if found := STEP.search(line):
                self.step = found[0]
                self.news.append(f'  {self.title}: {self.step}')

    def failure(self) -> UserError:
        """Print the end of the log; return the error of a failed command."""
        assert self._log is not None
        lines = self._log.read_text(errors='replace').splitlines()
        print(*lines[-20:], sep='\n', file=sys.stderr)
        return UserError(f'{self.title} failed; its log is {self._log}.')

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @property
    def eta(self) -> float | None:
        """Seconds of training left by the log, None if unknown."""
        found = ETA.search(self.step) if 'train' in self.step else None
        if found is None:
            return None
        days, hours, minutes, seconds = (int(n or 0) for n in found.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


@dataclass
class Board:
    """State of a plan of experiments.

    Attributes:
        todo (deque): Experiments to start.
        running (list[Job]): Jobs that run.
        done (int): Number of finished experiments.
        failed (int): Number of failed ones.
        seconds (list[float]): Durations of those that finished here.
    """

    todo: deque[Any]
    running: list[Any] = field(default_factory=list)
    done: int = 0
    failed: int = 0
    seconds: list[float] = field(default_factory=list)

    def end(self, job: Job, failed: bool = False) -> None:
        """Take a job from the list of those that run."""
        self.running.remove(job)
        if failed:
            self.failed += 1
        else:
            self.done += 1
            self.seconds.append(job.elapsed)

    def seconds_left(self) -> float | None:
        """Estimate the time left; None if nothing is known yet.

        A run that has not begun takes as long as finished ones did, or else
        as the running ones expect.
        """
        etas = {job.name: job.eta for job in self.running}
        expected = [
            job.elapsed + eta
            for job in self.running
            if (eta := etas[job.name]) is not None
        ]
        known = self.seconds or expected
        if not known:
            return None
        usual = sum(known) / len(known)
        left = [
            max(0.0, usual - job.elapsed) if eta is None else eta
            for job, eta in zip(self.running, etas.values(), strict=True)
        ]
        total = sum(left) + usual * len(self.todo)
        return max([total / max(1, len(left)), *left])

    def summary(self) -> str:
        """Return the state in a line."""
        running = len(self.running)
        total = len(self.todo) + running + self.done + self.failed
        text = f'{self.done} of {total} runs done'
        if self.failed:
            text += f', {self.failed} failed'
        if (left := self.seconds_left()) is not None and running + len(
            self.todo
        ):
            text += f', about {duration(left)} left'
        return text

    def table(self) -> Group:
        """Return the state, and the running jobs as a table."""
        grid = Table(box=None)
        for name in ('run', 'step', 'time', 'left'):
            grid.add_column(name, no_wrap=True)
        for job in self.running:
            step = ' '.join(TIMES.sub('', job.step).split())
            cells = (job.title or job.name, step, duration(job.elapsed))
            grid.add_row(*map(Text, cells), duration(job.eta))
        rows = [grid] if self.running else []
        return Group(Text(self.summary(), 'bold'), *rows)


class PlainView:
    """View of a plan as lines, for a log."""

    def say(self, text: str, board: Board) -> None:
        """Print a result, and the state after it."""
        print(f'{text}\n{board.summary()}', flush=True)

    def show(self, board: Board) -> None:
        """Print what is new."""
        for job in board.running:
            for line in job.news:
                print(line, flush=True)
            job.news.clear()


class LiveView(PlainView):
    """View of a plan as a table that changes, under the results."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def say(self, text: str, board: Board) -> None:
        """Print a result above the table."""
        self._live.console.print(Text(text))
        self.show(board)

    def show(self, board: Board) -> None:
        """Replace the table."""
        for job in board.running:
            job.news.clear()
        self._live.update(board.table())


@contextmanager
def open_view() -> Iterator[PlainView]:
    """Open a live table on a terminal, else the view of lines."""
    console = Console()
    if not console.is_terminal or console.is_dumb_terminal:
        yield PlainView()
        return
    with Live(console=console, refresh_per_second=4) as live:
        yield LiveView(live)
