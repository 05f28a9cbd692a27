"""Write a report of runs: one HTML file, with CSV files beside it.

Give work dirs of any MMEngine runs, or the folder of a sweep. Runs of one
config with several seeds are shown as one network.
"""

import argparse
import csv
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from rich.console import Console
from rich.progress import track

from sift_mm.cli.arguments import natural
from sift_mm.cli.entry import Parser, entry_point
from sift_mm.cli.reports.layer_history import Layers, read_layers
from sift_mm.cli.reports.page import render
from sift_mm.cli.reports.run_groups import (
    Comparison,
    epoch_rows,
    find_dense,
    find_metric,
    group_runs,
    network_rows,
    run_rows,
)
from sift_mm.cli.reports.run_search import find_runs, unstarted
from sift_mm.cli.reports.sample_pictures import draw_samples
from sift_mm.errors import UserError


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description='Write a report of runs as an HTML page')
    add = parser.add_argument
    add(
        'work_dirs',
        nargs='+',
        type=Path,
        metavar='WORK_DIR',
        help='work dir of a run, or a folder with several',
    )
    add(
        '--out',
        type=Path,
        help='folder of the page and its CSV files (default: the folder '
        'report in the first WORK_DIR)',
    )
    add('--metric', help='metric to compare, such as coco/bbox_mAP')
    add(
        '--dense',
        metavar='NAME',
        help='network that the others are compared with, by its name in the '
        'page (default: the first one without family and masks)',
    )
    add(
        '--checkpoints',
        type=natural,
        default=8,
        metavar='N',
        help='checkpoints to read for each network, first and last included; '
        '0 leaves out masks and spectral quantities (default: 8)',
    )
    add(
        '--samples',
        type=natural,
        default=3,
        metavar='N',
        help='images of the test set to draw detections or segmentations on; '
        '0 draws none (default: 3)',
    )
    add(
        '--images',
        nargs='+',
        type=Path,
        default=[],
        metavar='FILE',
        help='images in place of those of the test set',
    )
    args = parser.parse_args(argv)
    for path in args.images:
        if not path.is_file():
            parser.error(f'there is no image {path}')
    return args


@entry_point
def main(argv: Sequence[str] | None = None) -> None:
    """Write the report of runs.

    Raises:
        UserError: If a folder holds no run, or a name is unknown.
    """
    args = parse_args(argv)
    paths = [path for folder in args.work_dirs for path in find_runs(folder)]
    out = writable(args.out or args.work_dirs[0] / 'report')
    groups = group_runs(paths)
    compared = Comparison(
        groups,
        find_dense(groups, args.dense),
        find_metric(groups, args.metric),
    )
    # Spectra of a large network take a minute a checkpoint.
    shown = track(
        groups,
        'Reading checkpoints',
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    layers = {
        group.name: read_layers(group.shown, args.checkpoints)
        for group in shown
    }
    drawn = draw_samples(groups, args.samples, args.images)
    name = os.path.commonpath([path.resolve() for path in paths])
    title = f'Report of {Path(name).name or name}'
    page = render(compared, layers, drawn, title, without_runs(args.work_dirs))
    write_csv(out / 'summary.csv', epoch_rows(groups))
    write_csv(out / 'runs.csv', run_rows(groups))
    write_csv(out / 'networks.csv', network_rows(compared))
    write_csv(out / 'layers.csv', layer_rows(layers))
    path = out / 'report.html'
    path.write_text(page, encoding='utf-8')
    print(f'The report is {path}')


def writable(folder: Path, option: str = '--out') -> Path:
    """Create the folder of an option, before the work that fills it.

    Raises:
        UserError: If it cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise UserError(
            f'{folder} cannot be written ({error.strerror}): give a folder '
            f'by {option}.'
        ) from error


def without_runs(work_dirs: Sequence[Path]) -> list[str]:
    """Return a sentence on each run of a sweep that has nothing to show."""
    return [
        f'{path.relative_to(folder)}: nothing to show; see {path}/train.log.'
        for folder in work_dirs
        for path in unstarted(folder)
    ]


def layer_rows(layers: Mapping[str, Layers]) -> list[dict[str, Any]]:
    """Return one row a value of a layer, for layers.csv."""
    return [
        {
            'network': network,
            'source': source,
            'step': step,
            'layer': layer,
            'quantity': quantity,
            'value': value,
        }
        for network, found in layers.items()
        for source, history in (
            ('log', found.logged),
            ('checkpoint', found.saved),
        )
        for quantity, curves in history.items()
        for layer, curve in curves.items()
        for step, value in curve
    ]


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with all their columns; an absent value is empty."""
    # A table without rows has a head too, which pandas needs.
    columns = dict.fromkeys(['network', *(k for row in rows for k in row)])
    with path.open('w', newline='', encoding='utf-8') as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)


if __name__ == '__main__':
    main()
