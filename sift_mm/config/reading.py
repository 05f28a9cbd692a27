"""Reading configs, with the options of the command line applied."""

import argparse
import io
import os
import os.path as osp
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.utils import is_installed

from sift_mm.backbones import PACKAGES
from sift_mm.config.member import MemberOptions
from sift_mm.config.overrides import override
from sift_mm.errors import Mistake

# Of the files that MMEngine reads.
SUFFIXES = ('.py', '.yml', '.yaml', '.json')


@contextmanager
def _without_noise() -> Iterator[None]:
    """Holds back what the libraries print about an optional package."""
    out = io.StringIO()
    try:
        with redirect_stdout(out):
            yield
    finally:
        for line in out.getvalue().splitlines(keepends=True):
            if 'Could not import OneDL' not in line:
                sys.stdout.write(line)


def load_config(args: argparse.Namespace) -> Config:
    """As :func:`read_config`, by the options of ``add_config_options``."""
    member = MemberOptions.of_args(args)
    return read_config(args.config, args.cfg_options, **vars(member))


def read_config(
    config: str, cfg_options: dict[str, Any] | None = None, **member: Any
) -> Config:
    """Reads a config file and changes it as the options say.

    Args:
        config (str): Path, or a name such as ``mmdet::...``.
        cfg_options (dict, optional): Values by dotted key.
        **member: Arguments of :func:`sift_mm.config.sparsify`; where all are
            None, it is not called.

    Raises:
        Mistake: If there is no such file, or no base of it, no such member
            of it, or an option that would not hold.
    """
    if not is_installed('mmsegmentation'):
        # MMEngine looks the base configs of `mmseg::` up under that
        # distribution name, which the maintained continuation has given up.
        MODULE2PACKAGE['mmseg'] = 'mmseg'
    try:
        # Config.fromfile takes a name such as `mmdet::...` for bases alone.
        path, _ = Config._get_cfg_path(config, '')
    except (FileNotFoundError, AssertionError):  # Or no such library.
        path = ''
    except ValueError:  # A '+' in it, or no path behind the library.
        raise Mistake(
            f'{config} is no name that MMEngine reads: behind one :: it wants '
            'a folder of letters, digits and underscores, and a file; give '
            'the path of the config file.'
        ) from None
    if not osp.isfile(path):
        raise Mistake(f'There is no config file {config}.')
    if not path.endswith(SUFFIXES):
        raise Mistake(
            f'{config} is no config: the name of one ends in '
            f'{", ".join(SUFFIXES)}.'
        )
    try:
        with _without_noise():
            cfg = Config.fromfile(path)
    except (OSError, ImportError) as error:  # Of a base, or what it imports.
        reason = str(error).partition('\n')[0]
        raise Mistake(f'{config} cannot be read: {reason}') from error
    if 'default_scope' not in cfg and (library := _library_of(path)):
        cfg.default_scope = library  # As the library's own tools set it.
    options = MemberOptions(**member)
    if options:
        import_library(cfg)
    try:
        override(cfg, cfg_options or {}, options)
    except ValueError as error:
        raise Mistake(f'{config}: {error}') from error
    return cfg


def _library_of(path: str) -> str | None:
    """The library that ships a config, by its folder of configs."""
    found = re.search(rf'/({"|".join(PACKAGES)})/\.mim/', osp.abspath(path))
    return found and found[1]


def import_library(cfg: Config) -> None:
    """Imports the library of the config's ``default_scope``, if installed.

    The registries would do it, but noisily.

    Raises:
        Mistake: If it is one of OpenMMLab's and not installed.
    """
    scope = cfg.get('default_scope', 'mmengine')
    if scope not in PACKAGES:
        return
    if find_spec(scope) is None:
        raise Mistake(
            f"The config's default_scope is {scope}: install "
            f'{PACKAGES[scope]}.'
        )
    with _without_noise():
        import_module(f'{scope}.datasets')


def load_run_config(args: argparse.Namespace) -> Config:
    """Reads the config of a run, by the options of ``add_run_options``.

    ``launcher`` and ``work_dir`` are set in it.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    limit = os.environ.get('DYNAMO_CACHE_SIZE_LIMIT')
    if limit is not None:
        # Detectors have dynamic shapes: every recompilation costs minutes.
        import torch._dynamo

        torch._dynamo.config.cache_size_limit = int(limit)
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
