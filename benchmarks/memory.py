"""Peak memory of ResNet-18 and of its Sparse Wide transform.

Dense, wide executed densely, and wide on sparse kernels run in separate
processes, at inference and in a training step. A figure is the peak resident
size during the run, minus the size before the network was built: the network
with its activations, without the memory for building it.

    python benchmarks/memory.py --sparsities 0.75 0.9
"""

import argparse
import ctypes
import gc
import multiprocessing
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from masked_step import build_model  # type: ignore[import-not-found]
from sparse_execution import (  # type: ignore[import-not-found]
    step_of,
    wide_network,
    wide_step,
)

from sift_mm.deploy import to_sparse

MODES = ('dense', 'wide, executed densely', 'wide, sparse')
TASKS = ('inference', 'training step')


def resident(key: str) -> float:
    """Return the MiB of this process: 'VmRSS' now, 'VmHWM' at its peak."""
    status = Path('/proc/self/status').read_text()
    return int(status.split(f'{key}:')[1].split()[0]) / 1024


def peak(run: Callable[[], object]) -> float:
    """Return the peak resident size in MiB during a function."""
    gc.collect()
    # The allocator may hold freed memory.
    ctypes.CDLL('libc.so.6').malloc_trim(0)
    Path('/proc/self/clear_refs').write_text('5')
    run()
    return resident('VmHWM')


def measure(
    task: str, mode: str, sparsity: float, batch: int, threads: int
) -> float:
    """Return the MiB of a task, in the calling process."""
    torch.set_num_threads(threads)
    x = torch.randn(batch, 3, 224, 224)
    target = torch.randint(1000, (batch,))
    before = resident('VmRSS')
    dense, sparse = mode == 'dense', mode == 'wide, sparse'
    if task == 'training step':
        if dense:
            step = step_of(build_model(64), x, target)
        else:
            execution = 'sparse' if sparse else 'dense'
            step = wide_step(sparsity, execution, x, target)
        step()  # The first step creates the optimizer's slots.
        return peak(step) - before

    model = (build_model(64) if dense else wide_network(sparsity)).eval()
    if sparse:
        model = to_sparse(model)
    with torch.inference_mode():
        return peak(partial(model, x)) - before


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument(
        '--sparsities', type=float, nargs='+', default=[0.5, 0.75, 0.9]
    )
    parser.add_argument('--batch', type=int, default=64)
    parser.add_argument('--threads', type=int, default=2)
    args = parser.parse_args()
    processes = multiprocessing.get_context('spawn')
    for task in TASKS:
        for sparsity in args.sparsities:
            for mode in MODES:
                with processes.Pool(1) as pool:
                    given = (task, mode, sparsity, args.batch, args.threads)
                    mib = pool.apply(measure, given)
                print(f'{task:14} {sparsity:<5} {mode:24} {mib:6.0f} MiB')


if __name__ == '__main__':
    main()
