"""Prepares the data sets that the configs train on, and checks them.

What may be downloaded is downloaded; of what needs an account it says where
to get it and where to put it. A complete data set is only checked.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
from sift_mm.datasets.files import DataError  # noqa: E402

# The modules of sift_mm.datasets, with the folders of the configs.
FOLDERS = {
    'coco': 'data/coco',
    'cityscapes': 'data/cityscapes',
    'cifar100': 'data/cifar100',
    'imagenet': 'data/imagenet',
    'fashion_mnist': 'data/fashion_mnist',
}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the options of the command line.

    Args:
        argv (Sequence[str], optional): Options; by default those of the
            process.

    Returns:
        argparse.Namespace: The options, checked as far as argparse can.
    """
    parser = argparse.ArgumentParser(
        description='Prepare a data set and check it.'
    )
    sets = parser.add_subparsers(dest='name', required=True)
    for name, folder in FOLDERS.items():
        one = sets.add_parser(name)
        one.add_argument(
            '--root',
            type=Path,
            default=Path(folder),
            help="the data set's folder (default: %(default)s)",
        )
        if name == 'coco':
            one.add_argument(
                '--download',
                action='store_true',
                help='fetch the archives that are missing (20 GB)',
            )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Prepares a data set as the command line says.

    Args:
        argv (Sequence[str], optional): Options; by default those of the
            process.

    Returns:
        int: 0 if the data set is complete, else 1.
    """
    # What is unfinished is removed on the way out, also of a batch system's.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = vars(parse_args(argv))
    name = options.pop('name')
    prepare = import_module(f'sift_mm.datasets.{name}').prepare
    try:
        found = prepare(**options)
    except (DataError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    details = f': {found}' if isinstance(found, str) else ''
    print(f'{options["root"]} is complete{details}')
    return 0
