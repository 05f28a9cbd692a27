"""Mistakes of a config, found before the first iteration."""

import copy
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import is_model_wrapper
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from sift_mm.engine.plan import sparse_backbone
from sift_mm.flops import on_meta

# Of the image of the trial run, whose size says nothing.
TRIAL = (256, 256)
# How the libraries name the width of what a module reads.
KEY = 'in_channels'


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside a data-parallel wrapper.

    Raises:
        TypeError: If the wrapper shards parameters: a rank then sees pieces
            of weights, and masks cannot be drawn.
    """
    if not is_model_wrapper(model):
        return model
    if not isinstance(model, (DistributedDataParallel, DataParallel)):
        raise TypeError(
            f'Masks cannot be trained under {type(model).__name__}; use '
            'MMDistributedDataParallel, the default of a distributed run.'
        )
    return model.module


def check_channels(model: nn.Module, cfg: Config | None = None) -> None:
    """Sends an image without numbers through a model with a wide backbone.

    Args:
        model (nn.Module): Detector, segmentor or classifier.
        cfg (Config, optional): Its config, for the message.

    Raises:
        ValueError: If a layer gets another number of channels than it reads,
            with the values of the config that fit, where they are known.
    """
    # Reports are read by those who check nothing.
    from sift_mm.analysis.model_forward import run_once

    found = sparse_backbone(model)
    backbone: Any = found and found[1]
    if found is None or found[0] != 'backbone.':
        return
    trial = on_meta(model)
    running: list[tuple[str, Any, Any]] = []

    def enter(name: str, module: Any, args: Any) -> None:
        running.append((name, module, args))

    def leave(*_: Any) -> None:
        running.pop()

    channels = getattr(backbone, 'image_channels', 3)
    image = torch.empty(1, channels, *TRIAL, device='meta')
    with ExitStack() as hooks:
        for name, module in trial.named_modules():
            hooks.enter_context(
                module.register_forward_pre_hook(partial(enter, name))
            )
            hooks.enter_context(module.register_forward_hook(leave))
        try:
            run_once(trial, image, auxiliary=True)
        except Exception:
            # What else may fail without numbers is no fault of the config.
            misfit = _misfit(*running[-1]) if running else None
            if misfit is None:
                return
        else:
            return
    name, reads, gets = misfit
    raise ValueError(
        f'model.{name} reads {reads} channels and gets {gets}: the backbone '
        f'(family={backbone.family!r}, sparsity={backbone.sparsity}) gives '
        f'{getattr(backbone, "out_channels", "other")} channels; '
        f'{_advice(cfg, backbone, misfit)}.'
    )


def _misfit(name: str, module: Any, args: Any) -> tuple[str, int, int] | None:
    """A layer, the channels that it reads, and those that it gets."""
    if not args or not isinstance(args[0], Tensor):
        return None
    last = hasattr(module, 'in_features')
    for key in ('in_channels', 'in_features', 'num_features', 'num_channels'):
        reads = getattr(module, key, None)
        if isinstance(reads, int) and args[0].dim() > 1:
            gets = args[0].shape[-1 if last else 1]
            return (name, reads, gets) if reads != gets else None
    return None


def _advice(cfg: Config | None, backbone: Any, misfit: Any) -> str:
    """What to write in the config, where that is known."""
    # It builds what it checks.
    from sift_mm.config.channels import fitted, reader_channels, written

    if cfg is not None:
        name, reads, gets = misfit
        module = name.split('.')
        one = copy.deepcopy(cfg.model)
        for leaf in reader_channels(one):
            node, place, key = leaf
            path = [part for part in key.split('.')[:-1] if KEY not in part]
            if path != module[: len(path)] or node[place] != reads:
                continue
            node[place] = gets
            values = fitted(cfg, backbone)
            if key not in values or values[key][1] != gets:
                values = {key: (written(leaf), gets)}
            texts = dict.fromkeys(text for text, _ in values.values())
            return f'write {", ".join(texts)}'
    return (
        'no in_channels of the config is known to be its width, so that it '
        "cannot follow; family='parallel' leaves features as wide as they are"
    )
