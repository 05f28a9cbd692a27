"""Scripts in processes of their own, without what it costs to start them.

A fork has the libraries, which take ten seconds to import, in memory.
"""

import os
import runpy
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import NoReturn

import mmdet.datasets  # noqa: F401
import mmpretrain.datasets  # noqa: F401
import mmseg.datasets  # noqa: F401
import torch

from helpers.runs import ROOT, forget_instances, free_port

# The first backward pass starts threads for the devices there are, and with
# one a fork has none: torch.compile pretends that there is a device.
torch.ones((), requires_grad=True).backward()

# Seconds after which one is ended.
LIMIT = 120


def run_forked(
    script: Path, *args: object, ranks: int = 1, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a Python script as a command, or as the ranks of a launcher.

    It has the first exit code that is not 0, and all that was written, that
    of each rank after another.
    """
    argv = [str(script), *map(str, args)]
    if ranks > 1:
        argv += ['--launcher', 'pytorch']
        env |= dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port())
        env |= dict(WORLD_SIZE=str(ranks), CUDA_VISIBLE_DEVICES='-1')
    logs = [Path.cwd() / f'forked_{rank}.log' for rank in range(ranks)]
    pids = []
    for rank, log in enumerate(logs):
        if ranks > 1:
            env |= dict(RANK=str(rank), LOCAL_RANK=str(rank))
        pids.append(os.fork())
        if pids[-1] == 0:
            _run(argv, env, log)
    codes = [os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in pids]
    said = ''.join(log.read_text() for log in logs)
    code = next(filter(None, codes), 0)
    return subprocess.CompletedProcess(argv, code, said)


def train_ranks(
    config: str, work_dir: Path, *options: object, ranks: int = 2
) -> str:
    """Train with several ranks; return their output."""
    tool = ROOT / 'tools/train.py'
    done = run_forked(
        tool, config, '--work-dir', work_dir, *options, ranks=ranks
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def _run(argv: list[str], env: dict[str, str], log: Path) -> NoReturn:
    """Run a script in a fork and exit, so that no test goes on there."""

    signal.alarm(LIMIT)
    with log.open('w') as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # Those of pytest lead elsewhere.
    sys.stdout = sys.stderr = open(1, 'w', buffering=1, closefd=False)
    code: object = 1
    try:
        os.environ.update(env)
        forget_instances()
        sys.argv = argv
        runpy.run_path(argv[0], run_name='__main__')
        code = 0
    except SystemExit as end:
        code = end.code or 0
        if isinstance(code, str):
            print(code)
            code = 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(int(str(code)))
