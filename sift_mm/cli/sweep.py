"""Train a dense network and members of the Sparse-IFT family beside it.

Every combination of the options with several values is a network. Each is
trained and tested with each seed, on the same schedule. Finished runs stay,
interrupted runs resume. `--report` writes mean and spread as a table and a
figure.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sift_mm.cli import html_report
from sift_mm.cli.arguments import Settings, check_pairs, name_of, positive
from sift_mm.cli.cluster import Slurm
from sift_mm.cli.entry import Parser, entry_point
from sift_mm.cli.experiments import Experiment, content_of, run_experiments
from sift_mm.cli.sweep_networks import plan_networks
from sift_mm.cli.sweep_report import write_report
from sift_mm.cli.sweep_results import Results
from sift_mm.errors import UserError
from sift_mm.flops.isoflop import INNER, check_sparsity
from sift_mm.layers import families
from sift_mm.sparsity import ALGORITHMS

# Options that take names, and all names.
NAMES = {
    '--family': families(),
    '--algorithm': ALGORITHMS.names,
    '--inner': INNER,
}
SPARSITIES = [0.5, 0.75, 0.9]
# Values of options that are not given.
DEFAULTS: dict[str, Sequence[Any]] = dict(
    family=families(),
    algorithm=('Static', 'RigL'),
    inner=(None,),
    sparsity=SPARSITIES,
)
# Sets of such values, each a comparison of the paper.
PRESETS: dict[str, dict[str, Sequence[Any]]] = {
    'members': dict(algorithm=('RigL',)),
    'algorithms': dict(family=('wide',), algorithm=('Static', 'SET', 'RigL')),
    'table7': dict(algorithm=('RigL',), inner=INNER),
}


def add_networks(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which networks are compared."""
    add = parser.add_argument
    add('dense', help='path of the config of the baseline')
    add(
        'sparse',
        help='path of the config of a member; options change it for the '
        'other members',
    )
    add(
        '--preset',
        choices=PRESETS,
        help='networks of a comparison, where other options do not say: '
        'members are all members with RigL, algorithms is wide with static, '
        'SET and RigL masks, table7 is every member with and without inner '
        'norm and activation; all at 0.5, 0.75 and 0.9',
    )
    for option, names in NAMES.items():
        add(
            option,
            nargs='+',
            type=name_of(names),
            choices=names,
            help='in upper or lower case',
        )
    add('--sparsity', nargs='+', type=float)
    add(
        '--axis',
        nargs='+',
        action='extend',
        metavar='KEY=VALUE,VALUE',
        help='values of a config key, or of the only key that ends so, such '
        'as lr=0.05,0.1; the dense network has them too if it has the key',
    )
    add(
        '--cfg-options',
        nargs='+',
        action='append',
        metavar='KEY=VALUE',
        help='a set of settings of the members, as for tools/train.py; repeat '
        'the option for another set',
    )
    add('--seeds', type=positive, default=3, help='runs of each')


def add_running(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how the networks are trained."""
    add = parser.add_argument
    add(
        '--jobs',
        type=positive,
        help='runs at a time (default: 1, and all on a cluster)',
    )
    add('--threads', type=positive, default=1, help='of PyTorch, in each run')
    add(
        '--launcher',
        choices=('local', 'slurm'),
        default='local',
        help='run on this machine, or as jobs of a Slurm cluster by submitit',
    )
    add(
        '--slurm',
        nargs='+',
        action=Settings,
        metavar='KEY=VALUE',
        help="arguments of submitit's SlurmExecutor, such as partition=gpu "
        'gpus_per_node=1 time=600 (in minutes; default: a day)',
    )
    add(
        '--results',
        type=Path,
        metavar='FILE.csv',
        help='add each finished run to this table, and take its rows as done',
    )
    add(
        '--work-dir',
        type=Path,
        help='of all runs (default: work_dirs/sweep/NAME, NAME being that of '
        'the dense config)',
    )
    add(
        '--report',
        type=Path,
        metavar='FILE.md',
        help='write the table into this file, between its two marks for this '
        'sweep, and the figure beside it; train nothing',
    )
    add('--metric', default='accuracy/top1', help='that --report compares')


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(
        description='Train members of the family beside the dense network'
    )
    add_networks(parser)
    add_running(parser)
    args = parser.parse_args(argv)
    if args.slurm and args.launcher != 'slurm':
        parser.error('--slurm needs --launcher slurm')
    for settings in args.cfg_options or ():
        check_pairs(parser, '--cfg-options', settings)
    for key, values in (DEFAULTS | PRESETS.get(args.preset, {})).items():
        if getattr(args, key) is None:
            setattr(args, key, values)
    for sparsity in args.sparsity:
        try:
            check_sparsity(sparsity)
        except ValueError as error:
            parser.error(str(error))
    return args


def train(args: argparse.Namespace, plan: Sequence[Experiment]) -> None:
    """Run what is missing of a plan.

    Raises:
        UserError: If runs failed, or the launcher is not available.
    """
    for config in (args.dense, args.sparse):
        content_of(config)  # Else each run would fail.
    html_report.writable(plan[0].root, '--work-dir')
    launcher, jobs = None, args.jobs or 1
    if args.launcher == 'slurm':
        launcher, jobs = Slurm(args.slurm or {}, args.threads), args.jobs
    done = None
    if args.results is not None:
        results = Results(args.results)
        number = results.restore(plan)
        print(f'{number} runs are done by {args.results}', flush=True)
        results.add(*(run for run in plan if results.lacks(run)))
        done = results.add
    run_experiments(plan, jobs, args.threads, launcher, done)


@entry_point
def main(argv: Sequence[str] | None = None) -> None:
    """Train the missing runs, or write the report.

    Raises:
        UserError: If runs failed; the others are finished.
    """
    args = parse_args(argv)
    # Sweeps of other configs need other folders.
    name = Path(args.dense).stem
    root = args.work_dir or Path('work_dirs/sweep', name)
    networks = plan_networks(args)
    runs = {
        network: [network.experiment(root, s) for s in range(args.seeds)]
        for network in networks
    }
    if args.report is not None:
        write_report(args.report, name, runs, args.metric)
        return
    # Seed by seed, for an early table; small networks first.
    by_size = sorted(networks, key=lambda network: network.sparsity or 0)
    plan = [runs[n][seed] for seed in range(args.seeds) for n in by_size]
    failed = None
    try:
        train(args, plan)
    except UserError as error:
        failed = error  # The report shows the runs that ended well.
    if failed is None or any(run.is_done() for run in plan):
        html_report.main([str(root), '--out', str(root / 'report')])
    if failed is not None:
        raise failed


if __name__ == '__main__':
    main()
