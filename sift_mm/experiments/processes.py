"""The tools, each in a process of its own, which end when this one does."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from sift_mm.errors import Mistake

# Seconds that a tool has to end by itself.
GRACE = 10.0


class Tools:
    """Runs tools, from several threads at a time, until it is told to stop.

    Each tool has so many ``threads`` of PyTorch.
    """

    def __init__(self, threads: int | None = None) -> None:
        self._env = {**os.environ, 'PYTHONUNBUFFERED': '1'}
        if threads is not None:
            self._env['OMP_NUM_THREADS'] = str(threads)
        self._lock = threading.Lock()
        self._started: list[subprocess.Popen[str]] = []
        self._stopped = False

    def run(self, name: str, log: Path, *words: str) -> None:
        """Runs Python with some words, its progress on the screen.

        All that it says is added to the log.

        Raises:
            Mistake: If it fails; the end of its log was printed then.
        """
        # Else one could start between the stop of the others and its own.
        with self._lock:
            if self._stopped:
                raise Mistake(f'{name} was not started.')
            process = subprocess.Popen(
                [sys.executable, *words],
                text=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=self._env,
                # A group of its own, which its data loaders are in too.
                start_new_session=True,
            )
            self._started.append(process)
        last: deque[str] = deque(maxlen=20)
        with log.open('a') as stream, process:
            assert process.stdout is not None
            for line in process.stdout:
                stream.write(line)
                last.append(line)
                for word in ('Epoch(', 'Iter('):
                    if word in line:
                        progress = line[line.index(word) :].strip()
                        print(f'  {name}: {progress[:100]}', flush=True)
        if process.returncode:
            print(''.join(last), file=sys.stderr)
            raise Mistake(f'{name} failed; its whole log is {log}.')

    def stop(self) -> None:
        """Ends all that run; no other starts."""
        with self._lock:
            self._stopped = True
        running = [p for p in self._started if p.poll() is None]
        end = time.monotonic() + GRACE
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in running:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
            for process in running:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0, end - time.monotonic()))


@contextmanager
def signals_raised() -> Iterator[None]:
    """Within it, a signal that is to end this process raises an exception.

    SIGINT raises KeyboardInterrupt, also where the shell has it ignored, as
    for a job in the background; SIGTERM, and SIGHUP unless it is ignored, as
    nohup has it, raise SystemExit. What follows the first is ignored.
    """
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        numbers.pop()

    def end(number: int, frame: FrameType | None) -> None:
        for other in numbers:
            signal.signal(other, signal.SIG_IGN)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
