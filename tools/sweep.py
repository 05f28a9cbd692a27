"""Trains a dense network and members of the Sparse-IFT family beside it.

Every member x sparsity x algorithm x seed is a run of tools/train.py on the
config given, with the same schedule. What is done already is not done again;
a run that was interrupted is resumed. `--report` writes mean and spread as a
table and a figure. Folder, table and figure have the name of the dense config.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path

# A checkout has to run as it is, without an installation.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sift_mm.isoflop import FAMILIES
from tools.analysis.sweep_report import Network, write_report


@dataclass(frozen=True)
class Job:
    """One training.

    Args:
        network (Network): What is trained.
        seed (int): Of weights, order of the data, and masks.
        work_dir (Path): For logs, checkpoints and ``result.json``.
        threads (int): That PyTorch may use.
    """

    network: Network
    seed: int
    work_dir: Path
    threads: int

    def __str__(self) -> str:
        return f'{self.network.name}, seed {self.seed}'

    @property
    def result(self) -> Path:
        """File with the metrics, written when all is done."""
        return self.work_dir / 'result.json'


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description='Train members of the family beside the dense network'
    )
    parser.add_argument('dense', help='path of the config of the baseline')
    parser.add_argument(
        'sparse',
        help='path of the config of a member; the others differ from it in '
        'family, sparsity and algorithm alone',
    )
    parser.add_argument(
        '--family', nargs='+', choices=FAMILIES, default=list(FAMILIES)
    )
    parser.add_argument(
        '--sparsity', nargs='+', type=float, default=[0.5, 0.75, 0.9]
    )
    parser.add_argument(
        '--algorithm',
        nargs='+',
        choices=('Static', 'SET', 'RigL'),
        default=['Static', 'RigL'],
    )
    parser.add_argument('--seeds', type=int, default=3, help='runs of each')
    parser.add_argument('--jobs', type=int, default=1, help='runs at a time')
    parser.add_argument(
        '--threads', type=int, default=1, help='of PyTorch, in each run'
    )
    parser.add_argument(
        '--work-dir',
        type=Path,
        help='of all runs (default: work_dirs/sweep/NAME, NAME being that of '
        'the dense config)',
    )
    parser.add_argument(
        '--report',
        type=Path,
        metavar='FILE.md',
        help='write the table into this file, between its two marks for this '
        'sweep, and the figure beside it; train nothing',
    )
    parser.add_argument(
        '--metric', default='accuracy/top1', help='that --report compares'
    )
    args = parser.parse_args(argv)
    # Sweeps of other configs must not take these runs for theirs.
    args.name = Path(args.dense).stem
    args.work_dir = args.work_dir or Path('work_dirs/sweep', args.name)
    return args


def plan_networks(args: argparse.Namespace) -> list[Network]:
    """The networks of a sweep, the dense one first."""
    found = [Network(args.dense)]
    for family, sparsity, algorithm in product(
        args.family, args.sparsity, args.algorithm
    ):
        if family == 'wide_factorized':
            algorithm = None  # It has no masks.
        found.append(Network(args.sparse, family, sparsity, algorithm))
    return list(dict.fromkeys(found))


def plan_jobs(args: argparse.Namespace) -> list[Job]:
    """All runs; those of one seed first, for a table with few seeds.

    Within a seed, the small networks come first.
    """
    networks = sorted(plan_networks(args), key=lambda n: n.sparsity or 0)
    return [
        Job(
            network,
            seed,
            args.work_dir / network.name / f'seed{seed}',
            args.threads,
        )
        for seed in range(args.seeds)
        for network in networks
    ]


def run(job: Job) -> str:
    """Trains, tests the last checkpoint, and writes what came out.

    Returns:
        str: A line about it.
    """
    import mmengine
    import torch
    from mmengine.runner import find_latest_checkpoint

    from tools import test, train

    torch.set_num_threads(job.threads)
    folder = str(job.work_dir)
    job.work_dir.mkdir(parents=True, exist_ok=True)
    options = [
        '--cfg-options',
        f'randomness.seed={job.seed}',
        'default_hooks.checkpoint.max_keep_ckpts=1',
    ]
    network = job.network.argv()
    with (job.work_dir / 'log.txt').open('a') as log:
        with redirect_stdout(log), redirect_stderr(log):
            train.main([*network, '--resume', '--work-dir', folder, *options])
            config, *member = network
            checkpoint = find_latest_checkpoint(folder)
            metrics = test.main(
                [config, checkpoint, *member, '--work-dir', folder, *options]
            )
    unfinished = job.result.with_suffix('.part')
    mmengine.dump(metrics, str(unfinished), file_format='json')
    os.replace(unfinished, job.result)
    return f'{job}: {metrics}'


def main(argv: Sequence[str] | None = None) -> None:
    """Trains what is not trained yet, or reports.

    Raises:
        SystemExit: If runs failed; the others were finished.
    """
    args = parse_args(argv)
    if args.report is not None:
        networks = plan_networks(args)
        write_report(
            args.report, args.name, networks, args.work_dir, args.metric
        )
        return
    jobs = [job for job in plan_jobs(args) if not job.result.exists()]
    print(f'{len(jobs)} runs to do', flush=True)
    failed = []
    # A process for each run, since MMEngine hands a visualizer on to the next
    # run, and started anew: a fork would share PyTorch's threads.
    with ProcessPoolExecutor(
        args.jobs, get_context('spawn'), max_tasks_per_child=1
    ) as pool:
        futures = {pool.submit(run, job): job for job in jobs}
        for future in as_completed(futures):
            job, error = futures[future], future.exception()
            if error is None:
                print(future.result(), flush=True)
            else:
                failed.append(job)
                print(f'{job}: {error}', flush=True)
    if failed:
        raise SystemExit(
            f'{len(failed)} runs failed; see {failed[0].work_dir}/log.txt.'
        )


if __name__ == '__main__':
    main()
