"""Trains a dense network and members of the Sparse-IFT family beside it.

Every member x sparsity x algorithm x seed is a run of tools/train.py on the
config given, with the same schedule. What is done already is not done again;
a run that was interrupted is resumed. `--report` writes mean and spread as a
table and a figure. Folder, table and figure have the name of the dense config.
"""

import argparse
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from mmengine.runner import find_latest_checkpoint

from sift_mm.experiments.processes import ROOT, run_tool, stop_tools
from sift_mm.experiments.sweep_report import Network, write_report
from sift_mm.isoflop import FAMILIES

# Metrics and costs of a run, in its folder when all is done.
RESULT = 'result.json'


@dataclass(frozen=True)
class Job:
    """One training.

    Args:
        network (Network): What is trained.
        seed (int): Of weights, order of the data, and masks.
    """

    network: Network
    seed: int

    def __str__(self) -> str:
        # In messages, and as its folder.
        return f'{self.network.name}/seed{self.seed}'


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
        Job(network, seed)
        for seed in range(args.seeds)
        for network in networks
    ]


def run(job: Job, args: argparse.Namespace) -> str:
    """Trains, and tests the last checkpoint.

    Returns:
        str: What came out.
    """
    folder = args.work_dir / str(job)
    folder.mkdir(parents=True, exist_ok=True)
    config, *options = job.network.argv()
    options += [
        f'--work-dir={folder}',
        '--cfg-options',
        f'randomness.seed={job.seed}',
        # MMEngine deletes before it writes: one has to be left then.
        'default_hooks.checkpoint.max_keep_ckpts=2',
    ]

    def step(tool: str, *arguments: str) -> None:
        run_tool(
            args.work_dir,
            f'{job}/{tool}',
            f'{ROOT}/tools/{tool}.py',
            config,
            *arguments,
            *options,
            cwd=Path(),
            OMP_NUM_THREADS=str(args.threads),
        )

    step('train', '--resume')
    result = folder / RESULT
    step('test', find_latest_checkpoint(folder), f'--out={result}')
    return result.read_text()


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
    jobs = [
        job
        for job in plan_jobs(args)
        if not (args.work_dir / str(job) / RESULT).exists()
    ]
    print(f'{len(jobs)} runs to do', flush=True)
    errors = []
    with ThreadPoolExecutor(args.jobs) as pool:
        futures = {pool.submit(run, job, args): job for job in jobs}
        try:
            for future in as_completed(futures):
                if error := future.exception():
                    errors.append(error)
                outcome = error or future.result()
                print(f'{futures[future]}: {outcome}', flush=True)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            # More than once, since a run may be about to start its test.
            while not all(future.done() for future in futures):
                stop_tools()
                time.sleep(0.1)
            raise
    if errors:
        raise SystemExit(f'{len(errors)} runs failed. {errors[0]}')


if __name__ == '__main__':
    main()
