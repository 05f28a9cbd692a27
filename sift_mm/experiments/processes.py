"""Steps of a longer piece of work, each one of the tools in a process."""

import os
import subprocess
import sys
from collections import deque
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Of all steps, those that have ended too.
PROCESSES: list[subprocess.Popen[str]] = []


def run_tool(
    out: Path, what: str, *arguments: str, cwd: Path = ROOT, **env: str
) -> None:
    """Run one of the tools, its log in a file, its progress on the screen.

    Args:
        out (Path): Folder for the log.
        what (str): The step's name in messages and of the log file.
        *arguments (str): The tool and its arguments.
        cwd (Path): Where it runs.
        **env (str): Variables to add to its environment.

    Raises:
        SystemExit: If it fails; the end of its log was printed then.
    """
    log = out / f'{what}.log'
    last: deque[str] = deque(maxlen=20)
    # A second attempt does not erase what the first one said.
    with (
        log.open('a') as stream,
        subprocess.Popen(
            [sys.executable, *arguments],
            cwd=cwd,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, 'PYTHONUNBUFFERED': '1', **env},
        ) as process,
    ):
        PROCESSES.append(process)
        assert process.stdout is not None
        for line in process.stdout:
            stream.write(line)
            last.append(line)
            for word in ('Epoch(', 'Iter('):
                if word in line:
                    progress = line[line.index(word) :].strip()
                    print(f'  {what}: {progress[:100]}', flush=True)
    if process.returncode:
        print(''.join(last), file=sys.stderr)
        raise SystemExit(f'The step {what} failed; its whole log is {log}.')


def stop_tools() -> None:
    """End the steps that run in other threads; those fail then."""
    for process in list(PROCESSES):
        process.terminate()


def is_finished(checkpoint: Path) -> bool:
    """Whether a training has written this checkpoint, and wholly so.

    MMEngine names a checkpoint in ``last_checkpoint`` after it has written it.
    """
    named = checkpoint.with_name('last_checkpoint')
    return (
        checkpoint.exists()
        and named.exists()
        and Path(named.read_text()).name == checkpoint.name
    )
