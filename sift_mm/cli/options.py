"""Options that the command lines share."""

import argparse
from collections.abc import Callable, Iterable

from mmengine.config import DictAction

from sift_mm.isoflop import FAMILIES

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')


def name_of(names: Iterable[str]) -> Callable[[str], str]:
    """For argparse's ``type``: a name, its case and dashes aside.

    Args:
        names (Iterable[str]): The names as they are written.

    Returns:
        Callable[[str], str]: Finds the name meant. A text that is none of
        them stays, for argparse's ``choices`` to refuse.
    """

    def key(text: str) -> str:
        return text.lower().replace('-', '').replace('_', '')

    known = {key(name): name for name in names}
    return lambda text: known.get(key(text), text)


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Adds ``config`` and ``--cfg-options``, which every tool has."""
    parser.add_argument('config', help='path of the config file')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings that replace those of the config, as key=value pairs '
        'with dots in the key; a list is written key="[a,b]" or key=a,b',
    )
    parser.add_argument(
        '--family',
        choices=FAMILIES,
        help='make the backbone this member of the Sparse-IFT family; width '
        'of neck and heads, optim wrapper and hook follow',
    )
    parser.add_argument(
        '--sparsity',
        type=float,
        help="nominal sparsity of the member, in place of the config's",
    )
    parser.add_argument(
        '--algorithm',
        choices=('Static', 'SET', 'RigL'),
        help='how masks are trained, in place of what the config says',
    )
    parser.add_argument(
        '--pretrained',
        metavar='FILE',
        help='checkpoint of a network with this backbone, a classifier say, '
        'to take its weights and masks from',
    )


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that train and test have in common."""
    add_config_options(parser)
    parser.add_argument(
        '--work-dir',
        help='folder for logs, checkpoints and metrics; by default the '
        "config's work_dir, else ./work_dirs/ and the config's name, with "
        'family, sparsity, algorithm and -pre where they are options',
    )
    parser.add_argument(
        '--no-pin-memory',
        action='store_true',
        help='switch pin_memory off in every data loader',
    )
    parser.add_argument(
        '--launcher',
        choices=LAUNCHERS,
        default='none',
        help='what starts the processes of a distributed run',
    )
    # torchrun sets LOCAL_RANK; torch.distributed.launch passes an option,
    # spelt with a dash since PyTorch 2.0.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
