"""Build and run the runner of a config, with or without accelerator."""

import gc
import logging
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
from sift_mm.engine.start_log import short_start

T = TypeVar('T')


def has_accelerator() -> bool:
    """Return True if there is a device with half precision."""
    return get_device() in ('cuda', 'npu', 'mlu', 'musa')


def set_loader_defaults(cfg: Config, phase: str) -> None:
    """Complete the data loader of an MMPreTrain config, in place.

    MMPreTrain's scripts add ``collate_fn``, ``pin_memory`` and
    ``persistent_workers``, so its configs lack them. MMEngine's default would
    pass a list of images to the classifier, not a batch.
    """
    loader = cfg.get(f'{phase}_dataloader')
    if loader is None or cfg.get('default_scope') != 'mmpretrain':
        return
    loader.setdefault('collate_fn', dict(type='default_collate'))
    loader.setdefault('pin_memory', has_accelerator())
    # PyTorch refuses persistent_workers without workers.
    loader.setdefault('persistent_workers', loader.get('num_workers', 0) > 0)


def switch_off(cfg: Config, phase: str, option: str) -> None:
    """Set an option of a phase's data loader, if any, to False."""
    loader = cfg.get(f'{phase}_dataloader')
    if loader is not None:
        loader[option] = False


def _log(message: str) -> None:
    """Log a change of the run in the first process."""
    if os.environ.get('RANK', os.environ.get('SLURM_PROCID', '0')) == '0':
        # Messages of lower levels go to the file of the environment.
        print_log(message, logger='current', level=logging.WARNING)


def fit_to_cpu(cfg: Config) -> None:
    """Adapt the config of a distributed run to a machine without accelerator.

    NCCL becomes gloo, DistributedDataParallel gets no device ids, and SyncBN
    becomes BN.
    """
    dist_cfg = cfg.get('env_cfg', {}).get('dist_cfg', {})
    if dist_cfg.get('backend', 'nccl') == 'nccl':
        cfg.merge_from_dict({'env_cfg.dist_cfg.backend': 'gloo'})
        _log('No accelerator found: the processes communicate by gloo.')
    wrapper = cfg.get('model_wrapper_cfg')
    if wrapper is None:
        # MMEngine's default, without device_ids.
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
    """Build MMEngine's runner, or the runner of ``runner_type``."""
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

    MMEngine does not end the group, and gloo aborts a process that exits
    during the last broadcast. DDP, and with it the runner, must be freed
    before: the task must not return the runner or its model.
    """
    use_safe_files()
    with starting(cfg) as hook, short_start(cfg) as log:
        runner = build_runner(cfg)
        log.end_building(runner)
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

    PyTorch waits five seconds for each worker that the garbage collector ends.
    """
    for loop in (runner._train_loop, runner._val_loop, runner._test_loop):
        for name in ('dataloader', 'dataloader_iterator'):
            owner: Any = getattr(loop, name, None)
            if hasattr(owner, '_iterator'):
                owner._iterator = None
