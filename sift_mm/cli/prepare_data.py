"""Prepares the data sets that the configs train on, and checks them.

What may be downloaded is downloaded; of what needs an account it says where
to get it and where to put it. A complete data set is only checked.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from sift_mm.cli.entry import Parser, entry_point
from sift_mm.datasets import DATA_SETS


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line; ``prepare`` is the data set's own function."""
    parser = Parser(description='Prepare a data set and check it.')
    sets = parser.add_subparsers(required=True, metavar='NAME')
    for data_set in DATA_SETS.values():
        if data_set.prepare is None:
            continue
        one = sets.add_parser(data_set.name, help=data_set.title)
        one.set_defaults(prepare=data_set.prepare)
        one.add_argument(
            '--root',
            type=Path,
            default=Path(data_set.folder),
            help="the data set's folder (default: %(default)s)",
        )
        if data_set.download:
            one.add_argument(
                '--download',
                action='store_true',
                help=f'download what is missing ({data_set.download})',
            )
    return parser.parse_args(argv)


@entry_point
def main(argv: Sequence[str] | None = None) -> None:
    """Prepares a data set as the command line says."""
    # What is unfinished is removed on the way out, also of a batch system's.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = vars(parse_args(argv))
    prepare = options.pop('prepare')
    options.pop('traceback')
    found = prepare(**options)
    print(f'{options["root"]} is complete: {found}')
