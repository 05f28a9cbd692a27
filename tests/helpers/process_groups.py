"""Functions run by several processes that form a process group."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing

# Seconds after which a process is ended.
LIMIT = 60


def run_ranks(
    function: Callable[..., Any], folder: Path, *args: object, ranks: int = 2
) -> list[Any]:
    """Run a function on each rank of a gloo group; return the results.

    The processes meet in an empty folder.
    """
    multiprocessing.start_processes(
        _run,
        (function, folder, ranks, args),
        ranks,
        # Quicker, but autograd may not be forked where it has used a GPU.
        start_method='spawn' if torch.cuda.is_available() else 'fork',
    )
    return [torch.load(folder / f'{rank}.pt') for rank in range(ranks)]


def _run(
    rank: int,
    function: Callable[..., Any],
    folder: Path,
    ranks: int,
    args: tuple[object, ...],
) -> None:
    signal.alarm(LIMIT)
    torch.set_num_threads(1)
    distributed.init_process_group(
        'gloo', f'file://{folder / "meet"}', rank=rank, world_size=ranks
    )
    torch.save(function(*args), folder / f'{rank}.pt')
    distributed.barrier()
    distributed.destroy_process_group()
