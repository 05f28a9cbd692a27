"""Progress of experiments: live rows, or lines without a terminal."""

import re
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID, TextColumn, TimeElapsedColumn

from sift_mm.errors import UserError

# MMEngine's line of a step, with the time left in it, cut behind a value.
STEP = re.compile(r'(Epoch|Iter)\(.{,110}(?<![: ])(?!\S)')


class Job:
    """Experiment that runs, with the logs of its commands.

    Args:
        experiment (Any): The experiment.
        start (Callable): Starts it; returns a future of a sentence that says
            what failed, or ''. A job of a cluster has ``job_id`` too.

    Attributes:
        title (str): Name and command, or '' before the first command.
        step (str): Newest line of a step.
        news (list[str]): Lines that were not shown.
    """

    def __init__(self, experiment: Any, start: Callable[[], Any]) -> None:
        self.experiment, self.name = experiment, experiment.name
        self.title = self.step = ''
        self.news: list[str] = []
        self._log: Path | None = None
        self._shown = 0
        # Logs of earlier starts go on.
        self._sizes = {t: _size(experiment.log(t)) for t in ('train', 'test')}
        self.future = start()
        self.number = getattr(self.future, 'job_id', '')
        if self.number:
            self.news.append(f'{self.name} is job {self.number}')

    def advance(self) -> bool:
        """Read progress; return whether all is done.

        Raises:
            UserError: If it failed; the end of its log is printed.
        """
        ended = self.future.done()
        for tool, before in [*self._sizes.items()]:
            log = self.experiment.log(tool)
            if _size(log) != before:
                self._read_log()
                del self._sizes[tool]
                self._log = log
                self._shown = before if _size(log) > before else 0
                self.title, self.step = f'{self.name}/{tool}', ''
                self.news.append(f'Starting {self.title}')
        self._read_log()
        if not ended:
            if self.number and not self.title:
                self.step = f'job {self.number}: {self.future.state}'
            return False
        try:
            sentence = self.future.result()
        except (RuntimeError, OSError) as error:
            raise UserError(
                f'{self.name} ended without a result: '
                f'{str(error).splitlines()[0]}'
            ) from error
        if sentence:
            if self._log is not None:
                lines = self._log.read_text(errors='replace').splitlines()
                print(*lines[-20:], sep='\n', file=sys.stderr)
            raise UserError(sentence)
        return True

    def _read_log(self) -> None:
        """Read the new lines of the log."""
        if self._log is None:
            return
        with self._log.open('rb') as stream:
            stream.seek(self._shown)
            lines, _, _ = stream.read().rpartition(b'\n')  # whole lines
        self._shown += len(lines)
        for line in lines.decode(errors='replace').splitlines():
            if found := STEP.search(line):
                self.step = found[0]
                self.news.append(f'  {self.title}: {self.step}')


def _size(path: Path) -> int:
    """Return the size of a file, 0 without one."""
    return path.stat().st_size if path.exists() else 0


class Board:
    """State of a plan of experiments, shown on the standard output.

    Args:
        total (int): Number of experiments.
        todo (int): Number of those to run.

    Attributes:
        rows (Progress): Context of the live rows.
    """

    def __init__(self, total: int, todo: int) -> None:
        self.total, self.todo = total, todo
        self.ended = self.failed = 0
        self._start = time.monotonic()
        console = Console()
        self._is_live = console.is_terminal and not console.is_dumb_terminal
        columns = TextColumn('{task.description}', markup=False)
        self.rows = Progress(
            columns,
            TimeElapsedColumn(),
            console=console,
            disable=not self._is_live,
        )
        self._summary = self.rows.add_task(self.summary())
        self._jobs: dict[Job, TaskID] = {}

    def summary(self) -> str:
        """Return the number of finished runs, and the time left if known."""
        done = self.total - self.todo + self.ended - self.failed
        text = f'{done} of {self.total} runs done'
        if self.failed:
            text += f', {self.failed} failed'
        left = self.todo - self.ended
        if self.ended and left:
            seconds = (time.monotonic() - self._start) / self.ended * left
            text += f', about {timedelta(seconds=int(seconds))} left'
        return text

    def show(self, running: Sequence[Job]) -> None:
        """Show what is new of the jobs that run."""
        for job in running:
            if self._is_live:
                if job not in self._jobs:
                    self._jobs[job] = self.rows.add_task('')
                text = f'  {job.title or job.name}  {job.step}'
                self.rows.update(self._jobs[job], description=text)
            else:
                for line in job.news:
                    print(line, flush=True)
            job.news.clear()

    def end(self, job: Job, outcome: str, failed: bool = False) -> None:
        """Show the outcome of a job that ended, and the state after it."""
        self.show([job])
        self.ended += 1
        self.failed += failed
        if self._is_live:
            self.rows.remove_task(self._jobs.pop(job))
            self.rows.update(self._summary, description=self.summary())
            print(f'{job.name}: {outcome}')
        else:
            print(f'{job.name}: {outcome}\n{self.summary()}', flush=True)
