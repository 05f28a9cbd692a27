"""Plan of experiments: a launcher runs the missing ones.

The folder of a run holds its state: ``plan.txt`` the config and options,
``trained.txt`` the last checkpoint's name, ``result.json`` the metrics.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol

from sift_mm.cli.progress import Board, Job
from sift_mm.cli.reports.run_dirs import Run
from sift_mm.config.loading import read_config
from sift_mm.errors import UserError

TOOLS: dict[str, tuple[str, ...]] = {
    name: ('-m', f'sift_mm.cli.{name}') for name in ('train', 'test')
}
GRACE_SECONDS = 10.0  # for a process to end by itself


@cache
def content_of(config: str) -> dict[str, Any]:
    """Read a config with its bases, once for all runs of this process."""
    return read_config(config).to_dict()


@dataclass(frozen=True)
class Experiment:
    """Training and test of a config, in a folder of its own.

    Args:
        root (Path): Folder of all experiments of a plan.
        name (str): Name in messages, and of the folder in ``root``.
        config (str): Path of the config.
        options (tuple[str, ...]): Options of both commands.
        cfg_options (tuple[str, ...]): Settings of the config, 'KEY=VALUE'.
        test_options (tuple[str, ...]): Options of the test alone.
    """

    root: Path
    name: str
    config: str
    options: tuple[str, ...] = ()
    cfg_options: tuple[str, ...] = ()
    test_options: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Folder of logs, checkpoints and result."""
        return self.root / self.name

    @property
    def result(self) -> Path:
        """File of metrics and costs."""
        return self.folder / 'result.json'

    @cached_property
    def plan(self) -> str:
        """Text of the config, its bases and the options."""
        content = dict(content_of(self.config))
        content['options'] = self.options, self.cfg_options
        return json.dumps(content, default=repr, indent=1)

    def is_current(self) -> bool:
        """Return whether the folder belongs to the same plan."""
        path = self.folder / 'plan.txt'
        return not path.exists() or path.read_text() == self.plan

    def is_done(self) -> bool:
        """Return whether the network is trained and tested."""
        return self.is_current() and self.result.exists()

    def commands(self) -> Iterator[tuple[str, list[str]]]:
        """Yield the missing commands, each after the one before has ended.

        Raises:
            UserError: If the training leaves no checkpoint.
        """
        if not self.is_current():
            stamp = time.strftime('%Y%m%d_%H%M%S')
            aside = self.folder.with_name(f'old-{self.folder.name}-{stamp}')
            self.folder.rename(aside)
            print(f'{self.name}: the config changed; the run is in {aside}.')
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / 'plan.txt').write_text(self.plan)
        trained = self.folder / 'trained.txt'
        if not trained.exists() or not self._named_in(trained).exists():
            self.result.unlink(missing_ok=True)
            yield 'train', self._words(self.folder, '--resume')
            latest = self.folder / 'last_checkpoint'
            if not latest.exists():
                log = self.log('train')
                raise UserError(f'{self.name} left no checkpoint; see {log}.')
            trained.write_text(latest.read_text())
        words = str(self._named_in(trained)), f'--out={self.result}'
        work_dir = self.folder / 'test'
        yield 'test', self._words(work_dir, *words, *self.test_options)

    def _named_in(self, file: Path) -> Path:
        """Return the checkpoint that a file names, also in a moved folder."""
        return self.folder / Path(file.read_text().strip()).name

    def _words(self, work_dir: Path, *options: str) -> list[str]:
        return [
            *(self.config, *options, *self.options),
            *(f'--work-dir={work_dir}', '--cfg-options'),
            # MMEngine deletes before it writes: keep another one.
            'default_hooks.checkpoint.max_keep_ckpts=2',
            *self.cfg_options,
        ]

    def log(self, tool: str) -> Path:
        """Return the file with the output of a command."""
        return self.folder / f'{tool}.log'

    def metrics(self) -> dict[str, float]:
        """Return the metrics by name, and the costs of the network."""
        return json.loads(self.result.read_text())

    def seconds(self) -> float:
        """Return the seconds of the training, without lost steps."""
        return Run(self.folder).seconds or 0.0


@dataclass
class Work:
    """Missing commands of an experiment.

    Args:
        experiment (Experiment): The experiment.
        threads (int, optional): Threads of PyTorch.
        tools (dict): Commands of the process that plans.

    Attributes:
        process (Popen, optional): The command that runs.
        stopped (bool): Whether no other command may start.
    """

    experiment: Experiment
    threads: int | None = None
    tools: dict[str, tuple[str, ...]] = field(
        default_factory=lambda: dict(TOOLS)
    )
    process: Any = None
    stopped: bool = False

    def __call__(self) -> str:
        """Run the commands; return a sentence if one fails, else ''."""
        try:
            for tool, words in self.experiment.commands():
                if self.stopped or self._run(tool, words):
                    log = self.experiment.log(tool)
                    name = f'{self.experiment.name}/{tool}'
                    return f'{name} failed; its log is {log}.'
        except UserError as error:
            return str(error)
        return ''

    def _run(self, tool: str, words: list[str]) -> int:
        """Run a command with its output in the log; return its status."""
        number = {'OMP_NUM_THREADS': str(self.threads)} if self.threads else {}
        with self.experiment.log(tool).open('a') as stream:
            try:
                # The process inherits the lock and outlives a killed plan.
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                name = f'{self.experiment.name}/{tool}'
                raise UserError(
                    f'Another process still runs {name}: wait for it, or end '
                    'it.'
                ) from None
            except OSError:
                pass  # this file system has no locks
            self.process = subprocess.Popen(
                [sys.executable, *self.tools[tool], *words],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, 'PYTHONUNBUFFERED': '1', **number},
                start_new_session=True,  # with its data loaders
            )
        return self.process.wait()

    def checkpoint(self) -> Any:
        """Return the same work: submitit queues it again at a time limit."""
        from submitit.helpers import DelayedSubmission

        self.process = None
        return DelayedSubmission(self)


class Launcher(Protocol):
    """Way to run experiments: on this machine, or on a cluster."""

    def start(self, experiment: Experiment) -> Job:
        """Start an experiment."""

    def stop(self, jobs: Sequence[Job]) -> None:
        """Leave or end the jobs that run, since this process ends."""


class Local:
    """Launcher of processes on this machine, each waited for by a thread.

    Args:
        threads (int, optional): Threads of PyTorch in each.
    """

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(1000)
        self._works: dict[str, Work] = {}

    def start(self, experiment: Experiment) -> Job:
        """Start an experiment."""
        work = Work(experiment, self._threads)
        self._works[experiment.name] = work
        return Job(experiment, lambda: self._pool.submit(work))

    def stop(self, jobs: Sequence[Job]) -> None:
        """End the processes of jobs and their children."""
        works = [self._works[job.name] for job in jobs]
        for work in works:
            work.stopped = True
        end = time.monotonic() + GRACE_SECONDS
        for number in (signal.SIGTERM, signal.SIGKILL):
            processes = [work.process for work in works if work.process]
            for process in processes:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
            for process in processes:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0, end - time.monotonic()))


def run_experiments(
    experiments: Sequence[Experiment],
    jobs: int | None = 1,
    threads: int | None = None,
    launcher: Launcher | None = None,
    done: Callable[[Experiment], None] | None = None,
) -> None:
    """Run the missing experiments in order, and print results.

    A failed experiment stops no other. A signal that ends this process ends
    the commands that run on this machine.

    Args:
        experiments (Sequence[Experiment]): The plan.
        jobs (int, optional): Experiments at a time; None is all.
        threads (int, optional): Threads of PyTorch in each.
        launcher (Launcher, optional): How to run them, with threads of its
            own; None is on this machine.
        done (Callable, optional): Function to call with each new result.

    Raises:
        UserError: If some failed.
    """
    launcher = launcher or Local(threads)
    todo = deque(e for e in experiments if not e.is_done())
    board = Board(len(experiments), len(todo))
    print(f'{len(todo)} runs to do', flush=True)
    errors: list[UserError] = []
    running: list[Job] = []
    with ExitStack() as stack:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if (before := signal.getsignal(number)) is not signal.SIG_IGN:
                stack.callback(signal.signal, number, before)
                signal.signal(number, lambda *_: sys.exit(143))
        stack.enter_context(board.rows)
        stack.callback(launcher.stop, running)
        while todo or running:
            while todo and (not jobs or len(running) < jobs):
                running.append(launcher.start(todo.popleft()))
            for job in [*running]:
                error = None
                try:
                    if not job.advance():
                        continue
                    outcome = job.experiment.result.read_text()
                except UserError as found:
                    errors.append(error := found)
                    outcome = str(found)
                running.remove(job)
                board.end(job, outcome, failed=error is not None)
                if done is not None and error is None:
                    done(job.experiment)
            board.show(running)
            time.sleep(0.1)
    if errors:
        reasons = '\n'.join(map(str, errors))
        raise UserError(f'{len(errors)} runs failed. {reasons}')
