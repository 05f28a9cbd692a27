"""Trains a dense network and members of the Sparse-IFT family beside it.

Every member x sparsity x algorithm x seed is a run of tools/train.py on the
config given, with the same schedule. What is done already is not done again;
a run that was interrupted is resumed. `--report` writes mean and spread as a
table and a figure.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

# A checkout has to run as it is, without an installation.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sift_mm.isoflop import FAMILIES


@dataclass(frozen=True)
class Job:
    """One training.

    Args:
        config (str): Path of the config.
        options (tuple[str, ...]): Of tools/train.py, that choose the member.
        name (str): Of the member, 'dense' or as 'wide-s75-rigl'.
        seed (int): Of weights, order of the data, and masks.
        work_dir (Path): For logs, checkpoints and ``result.json``.
        threads (int): That PyTorch may use.
    """

    config: str
    options: tuple[str, ...]
    name: str
    seed: int
    work_dir: Path
    threads: int

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
        '--work-dir', type=Path, default=Path('work_dirs/sweep')
    )
    parser.add_argument(
        '--report',
        type=Path,
        metavar='FILE.md',
        help='write the table into this file, between its two marks, and the '
        'figure beside it; train nothing',
    )
    return parser.parse_args(argv)


def members(args: argparse.Namespace) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Names of the sparse networks, and the options that make them."""
    for sparsity in args.sparsity:
        for family in args.family:
            for algorithm in args.algorithm:
                size = ('--family', family, '--sparsity', str(sparsity))
                name = f'{family}-s{100 * sparsity:g}'
                if family == 'wide_factorized':
                    yield name, size  # It has no masks.
                    break
                yield (
                    f'{name}-{algorithm.lower()}',
                    (*size, '--algorithm', algorithm),
                )


def plan(args: argparse.Namespace) -> list[Job]:
    """All runs; those of one seed first, for a table with few seeds."""
    networks = [('dense', args.dense, ())]
    networks += [(name, args.sparse, opts) for name, opts in members(args)]
    return [
        Job(
            config,
            options,
            name,
            seed,
            args.work_dir / name / f'seed{seed}',
            args.threads,
        )
        for seed in range(args.seeds)
        for name, config, options in networks
    ]


def run(job: Job) -> str:
    """Trains, and writes the metrics of the last validation.

    Returns:
        str: A line about it.
    """
    import torch

    from tools.train import main

    torch.set_num_threads(job.threads)
    job.work_dir.mkdir(parents=True, exist_ok=True)
    with (job.work_dir / 'log.txt').open('a') as log:
        with redirect_stdout(log), redirect_stderr(log):
            main(
                [
                    job.config,
                    *job.options,
                    '--resume',
                    '--work-dir',
                    str(job.work_dir),
                    '--cfg-options',
                    f'randomness.seed={job.seed}',
                    'default_hooks.checkpoint.max_keep_ckpts=1',
                ]
            )
    metrics: dict[str, float] = {}
    for path in sorted(job.work_dir.glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            logged = json.loads(line)
            if 'loss' not in logged:
                metrics.update(logged)
    job.result.write_text(json.dumps(metrics))
    return f'{job.name}, seed {job.seed}: {metrics}'


def main(argv: Sequence[str] | None = None) -> None:
    """Trains what is not trained yet, or reports.

    Raises:
        SystemExit: If runs failed; the others were finished.
    """
    args = parse_args(argv)
    if args.report is not None:
        from tools.analysis.sweep_report import write_report

        write_report(args.report, args.dense, args.sparse, args.work_dir)
        return
    jobs = [job for job in plan(args) if not job.result.exists()]
    print(f'{len(jobs)} runs to do', flush=True)
    failed = []
    # Each process starts anew: a fork would share PyTorch's threads.
    with ProcessPoolExecutor(args.jobs, get_context('spawn')) as pool:
        futures = {pool.submit(run, job): job for job in jobs}
        for future in as_completed(futures):
            job, error = futures[future], future.exception()
            if error is None:
                print(future.result(), flush=True)
            else:
                failed.append(job)
                print(f'{job.name}, seed {job.seed}: {error}', flush=True)
    if failed:
        raise SystemExit(
            f'{len(failed)} runs failed; see {failed[0].work_dir}/log.txt.'
        )


if __name__ == '__main__':
    main()
