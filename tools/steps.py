"""Steps of a longer piece of work, each one of the tools in a process."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run_tool(out: Path, what: str, *arguments: str) -> None:
    """Run one of the tools, its log in a file, its progress on the screen.

    Args:
        out (Path): Folder for the log.
        what (str): The step's name in messages and of the log file.
        *arguments (str): The tool and its arguments.

    Raises:
        SystemExit: If it fails; the end of its log was printed then.
    """
    log = out / f'{what}.log'
    lines: list[str] = []
    with log.open('w') as stream, subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**os.environ, 'PYTHONUNBUFFERED': '1'}) as process:
        assert process.stdout is not None
        for line in process.stdout:
            stream.write(line)
            lines.append(line)
            for word in ('Epoch(', 'Iter('):
                if word in line:
                    progress = line[line.index(word):].strip()
                    print(f'  {what}: {progress[:100]}', flush=True)
    if process.returncode:
        print(''.join(lines[-20:]), file=sys.stderr)
        raise SystemExit(f'The step {what} failed; its whole log is {log}.')
