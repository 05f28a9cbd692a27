"""Loading of configs, with the options of the command line."""

import argparse
import os
import os.path as osp
from typing import Any

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.utils import import_modules_from_strings, is_installed

from sift_mm.config.explain import explained, one_line
from sift_mm.config.family_options import MemberOptions
from sift_mm.config.libraries import (
    import_library,
    library_of,
    without_noise,
)
from sift_mm.config.nodes import walk
from sift_mm.config.overrides import override
from sift_mm.config.types import check, check_types
from sift_mm.errors import UserError

# Environment variables that a launcher sets, and the command that starts it.
LAUNCHERS = {
    'pytorch': (
        ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'),
        'tools/dist_train.sh or torchrun',
    ),
    'slurm': (
        ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_NODELIST'),
        'tools/slurm_train.sh or srun',
    ),
    'mpi': (
        (
            'OMPI_COMM_WORLD_LOCAL_RANK',
            'OMPI_COMM_WORLD_RANK',
            'OMPI_COMM_WORLD_SIZE',
            'MASTER_ADDR',
        ),
        "Open MPI's mpirun, with MASTER_ADDR set to the first machine",
    ),
}
# Suffixes of the files that MMEngine reads.
SUFFIXES = ('.py', '.yml', '.yaml', '.json')


def load_config(args: argparse.Namespace) -> Config:
    """Call :func:`read_config` with the options of a command line."""
    member = MemberOptions.of_args(args)
    return read_config(args.config, args.cfg_options, **vars(member))


def read_config(
    config: str, cfg_options: dict[str, Any] | None = None, **member: Any
) -> Config:
    """Read a config file and apply the options.

    Args:
        config (str): Path, or a name such as ``mmdet::...``.
        cfg_options (dict, optional): Values by dotted key.
        **member: Arguments of :func:`sift_mm.config.sparsify`, which is not
            called if all are None.

    Raises:
        UserError: If the file or a base of it is missing, or an option is
            invalid.
    """
    if not is_installed('mmsegmentation'):
        # MMEngine looks for the base configs of `mmseg::` under that
        # distribution name, which the maintained fork does not have.
        MODULE2PACKAGE['mmseg'] = 'mmseg'
    try:
        # Config.fromfile takes a name such as `mmdet::...` for bases alone.
        path, _ = Config._get_cfg_path(config, '')
    except (FileNotFoundError, AssertionError):  # Or no such library.
        path = ''
    except ValueError:  # With '+', or without a path behind the library.
        raise UserError(
            f'{config} is no name that MMEngine reads: behind one :: it wants '
            'a folder of letters, digits and underscores, and a file; give '
            'the path of the config file.'
        ) from None
    if not osp.isfile(path):
        raise UserError(f'There is no config file {config}.')
    if not path.endswith(SUFFIXES):
        raise UserError(
            f'{config} is no config: the name of one ends in '
            f'{", ".join(SUFFIXES)}.'
        )
    with explained(config), without_noise():
        cfg = Config.fromfile(path, import_custom_modules=False)
        _import_modules(cfg)
    with explained(config, cfg):
        check_types(cfg)
        if 'default_scope' not in cfg and (library := library_of(path)):
            cfg.default_scope = library  # The library's tools do the same.
        options = MemberOptions(**member)
        if options:
            import_library(cfg)
        override(cfg, cfg_options or {}, options)
        check_types(cfg)
    return cfg


def _import_modules(cfg: Config) -> None:
    """Import the modules of ``custom_imports``, and those of its imports.

    Raises:
        UserError: If one cannot be imported, with its name and the reason.
    """
    custom = cfg.get('custom_imports') or {}
    check(isinstance(custom, dict), 'custom_imports', custom, 'a dict')
    try:
        if custom:
            import_modules_from_strings(**custom)
    except Exception as error:
        reason = one_line(error.__context__ or error)
        raise UserError(
            f'custom_imports: a module cannot be imported ({reason}); install '
            'it, put its folder on PYTHONPATH, or take the name out.'
        ) from error
    try:
        # MMEngine imports a config's own imports when a value is read.
        for _ in walk(cfg._cfg_dict, ''):
            pass
    except ImportError as error:
        raise UserError(
            f'{one_line(error)}; install it, or put its folder on PYTHONPATH.'
        ) from error


def load_run_config(args: argparse.Namespace) -> Config:
    """Read the config of a run, with the options of ``add_run_options``.

    The config gets ``launcher`` and ``work_dir``.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    check_launcher(args.launcher)
    cfg = load_config(args)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        name = osp.splitext(osp.basename(args.config))[0]
        member = MemberOptions.of_args(args)
        name = '_'.join(filter(None, (name, member.name)))
        cfg.work_dir = osp.join('./work_dirs', name)
    return cfg


def check_launcher(launcher: str) -> None:
    """Refuse a launcher whose environment variables are missing.

    Raises:
        UserError: With the command that sets them.
    """
    wanted, command = LAUNCHERS.get(launcher, ((), ''))
    missing = [name for name in wanted if name not in os.environ]
    if missing:
        raise UserError(
            f'--launcher {launcher} needs {", ".join(missing)} in the '
            f'environment: start the run by {command}, or leave --launcher '
            'out for a single process.'
        )
