"""What the command line tools share: options, config and launching."""

import argparse
import io
import os
import os.path as osp
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from typing import Any
from unittest import mock

import torch
from mmengine.config import Config, DictAction
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from mmengine.utils import is_installed

from sift_mm.backbones import PACKAGES
from sift_mm.config import sparsify, type_name
from sift_mm.isoflop import FAMILIES

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')
SYNC_NORMS = ('SyncBN', 'MMSyncBN', 'NaiveSyncBN', 'SyncBatchNorm')


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
    """Reads the config that the options of :func:`add_config_options` name.

    Raises:
        SystemExit: As :func:`read_config`.
    """
    return read_config(
        args.config,
        args.cfg_options,
        family=args.family,
        sparsity=args.sparsity,
        algorithm=args.algorithm,
        pretrained=args.pretrained,
    )


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
        SystemExit: If there is no such file, or no such member of it.
    """
    if not is_installed('mmsegmentation'):
        # MMEngine looks the base configs of `mmseg::` up under that
        # distribution name, which the maintained continuation has given up.
        MODULE2PACKAGE['mmseg'] = 'mmseg'
    try:
        # Config.fromfile takes a name such as `mmdet::...` for bases alone.
        path, _ = Config._get_cfg_path(config, '')
    except FileNotFoundError:
        path = ''
    if not osp.isfile(path):
        raise SystemExit(f'There is no config file {config}.')
    with _without_noise():
        cfg = Config.fromfile(path)
    if cfg_options is not None:
        cfg.merge_from_dict(cfg_options)
    if any(value is not None for value in member.values()):
        import_library(cfg)
        try:
            sparsify(cfg, **member)
        except ValueError as error:
            raise SystemExit(f'{config}: {error}') from error
    return cfg


def member_name(
    family: str | None,
    sparsity: float | None,
    algorithm: str | None,
    pretrained: str | None = None,
) -> str:
    """What the options of :func:`sparsify` say, for a folder's name.

    Returns:
        str: 'wide-s75-rigl-pre', a part of it, or ''.
    """
    parts = [family]
    if sparsity is not None:
        parts.append(f's{100 * sparsity:g}')
    if algorithm is not None:
        parts.append(algorithm.lower())
    if pretrained is not None:
        parts.append('pre')
    return '-'.join(filter(None, parts))


def import_library(cfg: Config) -> None:
    """Imports the library of the config's ``default_scope``, if installed.

    The registries would do it, but noisily.

    Raises:
        SystemExit: If it is one of OpenMMLab's and not installed.
    """
    scope = cfg.get('default_scope', 'mmengine')
    if scope not in PACKAGES:
        return
    if find_spec(scope) is None:
        raise SystemExit(
            f"The config's default_scope is {scope}: install "
            f'{PACKAGES[scope]}.'
        )
    with _without_noise():
        import_module(f'{scope}.datasets')


def load_run_config(args: argparse.Namespace) -> Config:
    """Reads the config of a run and applies the shared options.

    Args:
        args (argparse.Namespace): Options of :func:`add_run_options`.

    Returns:
        Config: The config with ``launcher`` and ``work_dir`` set.
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
        member = member_name(
            args.family, args.sparsity, args.algorithm, args.pretrained
        )
        name = '_'.join(filter(None, (name, member)))
        cfg.work_dir = osp.join('./work_dirs', name)
    return cfg


def has_accelerator() -> bool:
    """Whether there is a device for half precision and several processes."""
    return get_device() in ('cuda', 'npu', 'mlu', 'musa')


def set_loader_defaults(cfg: Config, phase: str) -> None:
    """Completes the data loader of an MMPreTrain config.

    Its configs leave out ``collate_fn``, ``pin_memory`` and
    ``persistent_workers``, since its own scripts add them. MMEngine's
    default would hand the classifier a list of images instead of a batch.

    Args:
        cfg (Config): Config, changed in place.
        phase (str): 'train', 'val' or 'test'.
    """
    loader = cfg.get(f'{phase}_dataloader')
    if loader is None or cfg.get('default_scope') != 'mmpretrain':
        return
    loader.setdefault('collate_fn', dict(type='default_collate'))
    loader.setdefault('pin_memory', has_accelerator())
    # PyTorch refuses to keep workers where there are none.
    loader.setdefault('persistent_workers', loader.get('num_workers', 0) > 0)


def switch_off(cfg: Config, phase: str, option: str) -> None:
    """Sets an option of a data loader, if there is one, to False.

    Args:
        cfg (Config): Config, changed in place.
        phase (str): 'train', 'val' or 'test'.
        option (str): Argument of the data loader.
    """
    loader = cfg.get(f'{phase}_dataloader')
    if loader is not None:
        loader[option] = False


def _log(message: str) -> None:
    """Logs a line once, not once a process."""
    if os.environ.get('RANK', os.environ.get('SLURM_PROCID', '0')) == '0':
        print_log(message, logger='current')


def replace_sync_norms(node: Any) -> bool:
    """Turns synchronised norms of a model config into BN, in place."""
    found = False
    if isinstance(node, dict):
        if node.get('type') in SYNC_NORMS:
            node['type'] = 'BN'
            found = True
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for child in node:
            found |= replace_sync_norms(child)
    return found


def fit_to_cpu(cfg: Config) -> None:
    """Lets a distributed run work without an accelerator.

    NCCL, the device ids of DistributedDataParallel and synchronised batch
    norms all need one; they are replaced by gloo, none, and BN.

    Args:
        cfg (Config): Config of a distributed run, changed in place.
    """
    dist_cfg = cfg.get('env_cfg', {}).get('dist_cfg', {})
    if dist_cfg.get('backend', 'nccl') == 'nccl':
        cfg.merge_from_dict({'env_cfg.dist_cfg.backend': 'gloo'})
        _log('No accelerator found: the processes communicate by gloo.')
    wrapper = cfg.get('model_wrapper_cfg')
    if wrapper is None:
        # What MMEngine takes when there is no wrapper config, device_ids
        # aside.
        cfg.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel',
            device_ids=None,
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        )
    elif 'type' not in wrapper or type_name(wrapper).endswith(
        'DistributedDataParallel'
    ):
        wrapper.setdefault('device_ids', None)
    if replace_sync_norms(cfg.model):
        _log(
            'No accelerator found: SyncBN becomes BN, and every process '
            'keeps statistics of its own.'
        )


def build_runner(cfg: Config) -> Runner:
    """Builds the runner that the config asks for.

    Args:
        cfg (Config): Complete config of a run.

    Returns:
        Runner: MMEngine's runner, or that named by ``runner_type``.
    """
    import_library(cfg)
    build = RUNNERS.build if 'runner_type' in cfg else Runner.from_cfg
    context: Any = nullcontext()
    if cfg.get('launcher', 'none') != 'none' and not has_accelerator():
        fit_to_cpu(cfg)
        # MMEngine selects a CUDA device on its way into the process group,
        # whatever the backend, which raises where there is none.
        context = mock.patch.object(torch.cuda, 'set_device')
    with context:
        return build(cfg)
