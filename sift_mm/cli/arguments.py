"""Shared options of the command lines."""

import argparse
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from mmengine.config import DictAction

from sift_mm.flops.isoflop import INNER, SPARSE_FACTORS
from sift_mm.layers import families
from sift_mm.sparsity import ALGORITHMS


def check_pairs(
    parser: argparse.ArgumentParser, option: str, values: Iterable[str]
) -> None:
    """Refuse values that are not KEY=VALUE."""
    for value in values:
        if '=' not in value:
            parser.error(f'{option} takes KEY=VALUE, not {value}')


class Settings(DictAction):
    """Action for KEY=VALUE pairs, like MMEngine's; it refuses others."""

    def __call__(self, parser: argparse.ArgumentParser, *args: Any) -> None:
        """Read the pairs that follow an option."""
        _, values, option = args
        check_pairs(parser, option, values)
        super().__call__(parser, *args)


def natural(text: str, least: int = 0) -> int:
    """Return a whole number, at least 0 or 1, from the command line."""
    if not text.isdecimal() or int(text) < least:
        kind = 'a whole number' + ' above zero' * least
        raise argparse.ArgumentTypeError(f'{text!r} is not {kind}')
    return int(text)


positive = partial(natural, least=1)


def name_of(names: Iterable[str]) -> Callable[[str], str]:
    """Return a ``type`` for argparse that ignores case and dashes of names.

    Unknown names do not change: ``choices`` refuses them.
    """

    def key(text: str) -> str:
        return text.lower().replace('-', '').replace('_', '')

    known = {key(name): name for name in names}
    return lambda text: known.get(key(text), text)


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Add ``config`` and the options that change it."""
    parser.add_argument('config', help='path of the config file')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=Settings,
        help='settings that replace those of the config, as key=value pairs '
        'with dots in the key; a list is written key="[a,b]" or key=a,b',
    )
    group = parser.add_argument_group(
        'Sparse-IFT', 'names in upper or lower case, as you like'
    )
    add = group.add_argument

    def add_name(flag: str, names: Iterable[str], text: str) -> None:
        names = tuple(names)
        add(flag, type=name_of(names), choices=names, help=text)

    add_name(
        '--family',
        families(),
        'make the backbone this member of the Sparse-IFT family; width of '
        'neck and heads and the hook follow',
    )
    add(
        '--sparsity',
        type=float,
        help="nominal sparsity of the member, in place of the config's",
    )
    add_name('--inner', INNER, 'modules behind an inner layer of the member')
    add_name(
        '--sparse-factors',
        SPARSE_FACTORS,
        'masked factors of a factorized member',
    )
    add_name(
        '--algorithm',
        ALGORITHMS.names,
        "mask training, in place of the config's",
    )
    add(
        '--interval',
        type=positive,
        metavar='STEPS',
        help='optimizer steps between two updates of the masks',
    )
    add(
        '--hook',
        nargs='+',
        action=Settings,
        metavar='KEY=VALUE',
        help='arguments of SparseTrainingHook, such as drop_fraction=0.5',
    )
    add(
        '--pretrained',
        metavar='FILE',
        help='checkpoint of a network with this backbone, a classifier say, '
        'to take its weights and masks from',
    )


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the common options of train and test."""
    add_config_options(parser)
    parser.add_argument(
        '--work-dir',
        help='folder for logs, checkpoints and metrics; by default the '
        "config's work_dir, else ./work_dirs/ and the config's name, with "
        'the options of Sparse-IFT that are given',
    )
    parser.add_argument(
        '--no-pin-memory',
        action='store_true',
        help='switch pin_memory off in every data loader',
    )
    parser.add_argument(
        '--launcher',
        choices=('none', 'pytorch', 'slurm', 'mpi'),
        default='none',
        help='what starts the processes of a distributed run',
    )
    # torchrun sets LOCAL_RANK; torch.distributed.launch passes an option,
    # spelt with a dash since PyTorch 2.0.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def add_shape_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--shape`` of an input image, and ``--tokens`` of a text."""
    add = parser.add_mutually_exclusive_group().add_argument
    add(
        '--shape',
        nargs=2,
        type=positive,
        metavar=('H', 'W'),
        help="height and width of the image; by default the pipelines'",
    )
    add(
        '--tokens',
        dest='shape',
        nargs=1,
        type=positive,
        metavar='N',
        help="length of the text of a language model; by default the data's",
    )


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``, the argument of :func:`print_report`."""
    parser.add_argument(
        '--json',
        nargs='?',
        const='-',
        metavar='FILE',
        help='write all numbers, unrounded, to this file; without a name, '
        'print them and nothing else',
    )
