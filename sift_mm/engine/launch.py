"""Run of a config, with and without accelerator."""

import gc
import os
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeVar
from unittest import mock

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import distributed

from sift_mm.config.building import replace_sync_norms
from sift_mm.config.libraries import import_library
from sift_mm.config.nodes import type_name
from sift_mm.engine.saving import use_safe_files
from sift_mm.engine.start import starting

T = TypeVar('T')


def has_accelerator() -> bool:
    """Return whether there is a device for half precision."""
    return get_device() in ('cuda', 'npu', 'mlu', 'musa')


def set_loader_defaults(cfg: Config, phase: str) -> None:
    """Complete the data loader of an MMPreTrain config, in place.

    Its configs leave out ``collate_fn``, ``pin_memory`` and
    ``persistent_workers``, since its own scripts add them. MMEngine's
    default would hand the classifier a list of images instead of a batch.
    """
    loader = cfg.get(f'{phase}_dataloader')
    if loader is None or cfg.get('default_scope') != 'mmpretrain':
        return
    loader.setdefault('collate_fn', dict(type='default_collate'))
    loader.setdefault('pin_memory', has_accelerator())
    # PyTorch refuses to keep workers where there are none.
    loader.setdefault('persistent_workers', loader.get('num_workers', 0) > 0)


def switch_off(cfg: Config, phase: str, option: str) -> None:
    """Set an option of a phase's data loader, if there is one, to False."""
    loader = cfg.get(f'{phase}_dataloader')
    if loader is not None:
        loader[option] = False


def _log(message: str) -> None:
    """Log a line once, not once a process."""
    if os.environ.get('RANK', os.environ.get('SLURM_PROCID', '0')) == '0':
        print_log(message, logger='current')


def fit_to_cpu(cfg: Config) -> None:
    """Let the config of a distributed run work without an accelerator.

    NCCL, the device ids of DistributedDataParallel and synchronised batch
    norms all need one; they are replaced by gloo, none, and BN.
    """
    dist_cfg = cfg.get('env_cfg', {}).get('dist_cfg', {})
    if dist_cfg.get('backend', 'nccl') == 'nccl':
        cfg.merge_from_dict({'env_cfg.dist_cfg.backend': 'gloo'})
        _log('No accelerator found: the processes communicate by gloo.')
    wrapper = cfg.get('model_wrapper_cfg')
    if wrapper is None:
        # MMEngine's own, device_ids aside.
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
    """Build MMEngine's runner, or that named by ``runner_type``."""
    import_library(cfg)
    build = RUNNERS.build if 'runner_type' in cfg else Runner.from_cfg
    context: Any = nullcontext()
    if cfg.get('launcher', 'none') != 'none' and not has_accelerator():
        fit_to_cpu(cfg)
        # MMEngine selects a CUDA device, whatever the backend.
        context = mock.patch.object(torch.cuda, 'set_device')
    with context:
        return build(cfg)


def run(cfg: Config, task: Callable[[Runner], T]) -> T:
    """Build a runner, run its task, and end its process group.

    Nobody else ends the group, and gloo's thread aborts a process that
    finishes while it still holds the last broadcast. What DDP holds has to
    be gone first, and with it the runner: neither a caller must keep it, nor
    the task return it or its model.
    """
    use_safe_files()
    with starting(cfg) as hook:
        runner = build_runner(cfg)
        runner.register_hook(hook)
        result = task(runner)
        end_workers(runner)
        del runner
    if distributed.is_available() and distributed.is_initialized():
        gc.collect()
        distributed.destroy_process_group()
    return result


def end_workers(runner: Runner) -> None:
    """End the workers of a run's data loaders.

    Where they are left to the garbage collector, PyTorch waits five seconds
    for each of them.
    """
    for loop in (runner._train_loop, runner._val_loop, runner._test_loop):
        for name in ('dataloader', 'dataloader_iterator'):
            owner: Any = getattr(loop, name, None)
            if hasattr(owner, '_iterator'):
                owner._iterator = None
