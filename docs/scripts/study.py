"""Run the study on Fashion-MNIST and text, and keep its results in a CSV file.

    python docs/scripts/study.py run --work-dir work_dirs/study
    python docs/scripts/study.py collect --work-dir work_dirs/study
    python docs/scripts/study.py report

``run`` trains what the CSV file lacks, by worth, and adds each finished run to
it; broken off, it goes on where it was. ``collect`` adds finished runs of
another checkout. ``report`` writes docs/results.md from the file. ``--only``
names questions.
"""

import argparse
import csv
import hashlib
import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from study_grid import BY_KEY, plan
from study_report import group, write_report
from study_rows import ROOT, Row

from sift_mm.cli.entry import Parser, entry_point
from sift_mm.cli.experiments import Experiment, content_of, run_experiments
from sift_mm.sparsity.mask_table import mask_table

DOCS = ROOT / 'docs'
RUNS = DOCS / 'results' / 'runs.csv'
COLUMNS = (
    *('row', 'seed', 'recipe', 'config', 'options', 'metric', 'value'),
    *(
        'flops',
        'flops_of_dense',
        'parameters',
        'active_parameters',
        'density',
        'itop',
    ),
    *('ramanujan_gap', 'imdb', 'weighted_gap', 'imsg'),
    *('seconds', 'machine', 'date'),
)


def recipe_of(row: Row) -> str:
    """Return a digest of a network's config and options."""
    # Seed and folder are options too, and no part of the recipe.
    run = row.experiment(Path('runs'), 0)
    config = dict(content_of(run.config))
    # These hooks log, save and check: they train nothing.
    config.pop('default_hooks', None)
    # Images have the same numbers as a list and as one tensor.
    if 'FashionMNIST' in str(config):
        for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
            config[key] = dict(config[key])
            config[key].pop('collate_fn', None)
    content = [config, run.options, run.cfg_options]
    text = json.dumps(content, default=repr, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_runs(path: Path) -> list[dict[str, str]]:
    """Return the results that are kept, a dict for each run."""
    if not path.exists():
        return []
    with path.open(newline='') as stream:
        return list(csv.DictReader(stream))


def keys_of(runs: Sequence[dict[str, str]]) -> set[tuple[str, int, str]]:
    """Return name, seed and recipe of each run."""
    return {(run['row'], int(run['seed']), run['recipe']) for run in runs}


def missing(
    keys: tuple[str, ...], done: set[tuple[str, int, str]]
) -> Iterator[tuple[Row, int]]:
    """Yield network and seed of the runs that are not among the results."""
    recipes: dict[Row, str] = {}
    for row, seed in plan(keys):
        recipe = recipes.setdefault(row, recipe_of(row))
        if (row.name, seed, recipe) not in done:
            yield row, seed


def to_run(
    root: Path, keys: tuple[str, ...], done: set[tuple[str, int, str]]
) -> list[Experiment]:
    """Return the missing runs, each behind the run that it starts from."""
    runs = [
        one.experiment(root, seed)
        for row, seed in missing(keys, done)
        for one in (row.start, row)
        if one is not None
    ]
    return [*{run.name: run for run in runs}.values()]


def current(runs: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Return the results of the recipes as they are now."""
    rows = {row for row, _ in plan()}
    known = {(row.name, recipe_of(row)) for row in rows}
    return [run for run in runs if (run['row'], run['recipe']) in known]


def describe(row: Row, seed: int, root: Path) -> dict[str, Any]:
    """Return the results of a finished run, by column."""
    run = row.experiment(root, seed)
    ended = time.gmtime(run.result.stat().st_mtime)
    found: dict[str, Any] = {
        'row': row.name,
        'seed': seed,
        'recipe': recipe_of(row),
        'config': Path(row.network.config).relative_to(ROOT).as_posix(),
        'options': ' '.join((*run.options, *row.network.cfg_options)),
        'seconds': round(run.seconds()),
        'machine': f'{os.cpu_count()} x {platform.machine()}',
        'date': time.strftime('%Y-%m-%d', ended),
    }
    metrics = run.metrics()
    found |= {'metric': row.metric, 'value': round(metrics[row.metric], 4)}
    if metrics['density'] < 1:
        checkpoint = (run.folder / 'trained.txt').read_text().strip()
        found |= mask_table(run.folder / Path(checkpoint).name)['total']
    return metrics | found


def collect(root: Path, path: Path) -> int:
    """Add finished runs to the CSV file, and return their number."""
    runs = read_runs(path)
    new = [
        {k: v for k, v in describe(row, seed, root).items() if k in COLUMNS}
        for row, seed in missing((), keys_of(runs))
        if row.experiment(root, seed).is_done()
    ]
    if new:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open('w', newline='') as stream:
            writer = csv.DictWriter(stream, COLUMNS, lineterminator='\n')
            writer.writeheader()
            writer.writerows([*runs, *new])
    return len(new)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(description='Study on Fashion-MNIST and text')
    commands = parser.add_subparsers(dest='command', required=True)
    for name in ('run', 'collect', 'report'):
        command = commands.add_parser(name)
        if name != 'report':
            command.add_argument(
                '--work-dir', type=Path, default=Path('work_dirs/study')
            )
        if name == 'run':
            command.add_argument(
                '--only', nargs='+', choices=[*BY_KEY], default=[]
            )
            command.add_argument('--jobs', type=int, default=1)
            command.add_argument('--threads', type=int, default=1)
    return parser.parse_args(argv)


@entry_point
def main(argv: Sequence[str] | None = None) -> None:
    """Run the study, collect results, or write the report."""
    args = parse_args(argv)
    if args.command == 'run':
        runs = to_run(
            args.work_dir, tuple(args.only), keys_of(read_runs(RUNS))
        )

        def keep(run: Experiment) -> None:
            collect(args.work_dir, RUNS)

        run_experiments(runs, args.jobs, args.threads, done=keep)
    elif args.command == 'collect':
        print(f'{collect(args.work_dir, RUNS)} runs added to {RUNS}')
    else:
        page, figure = DOCS / 'results.md', DOCS / 'results' / 'study.svg'
        write_report(group(current(read_runs(RUNS))), page, figure)


if __name__ == '__main__':
    main()
