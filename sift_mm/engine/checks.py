"""Mistakes of a config, found before the first iteration."""

from typing import Any

from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from .budget import sparse_backbone
from .optim_wrapper import MaskedStep


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
            'MMDistributedDataParallel, the default of a distributed run.')
    return model.module


def check_wrapper(optim_wrapper: Any) -> MaskedStep:
    """The run's optim wrapper, if it can mask.

    Raises:
        TypeError: If it cannot, with the name of the one that can.
    """
    if isinstance(optim_wrapper, MaskedStep):
        return optim_wrapper
    name = type(optim_wrapper).__name__
    if (not isinstance(optim_wrapper, OptimWrapper)
            or isinstance(optim_wrapper, OptimWrapperDict)):
        raise TypeError(
            f'SparseTrainingHook trains masks in one SparseOptimWrapper; '
            f'this run has {name}, which it cannot work with.')
    amp = hasattr(optim_wrapper, 'loss_scaler')
    right = 'SparseAmpOptimWrapper' if amp else 'SparseOptimWrapper'
    raise TypeError(
        f'The optim wrapper {name} cannot mask gradients; set '
        f"optim_wrapper.type='{right}' (the --amp option of other train "
        'scripts replaces the type; that of tools/train.py does not).')


def _consumer_channels(model: nn.Module, out: list[int],
                       out_indices: tuple[int, ...]
                       ) -> list[tuple[str, Any, Any]]:
    """(config key, value found, value expected) of what reads features."""
    def last(key: str, module: nn.Module) -> list[tuple[str, Any, Any]]:
        found = getattr(module, 'in_channels', None)
        if isinstance(found, (list, tuple)):
            return [(key, list(found), out)]
        return [(key, found, out[-1])] if isinstance(found, int) else []

    if getattr(model, 'neck', None) is not None:
        return last('neck.in_channels', model.neck)
    checks: list[tuple[str, Any, Any]] = []
    heads = [('decode_head', getattr(model, 'decode_head', None)),
             ('auxiliary_head', getattr(model, 'auxiliary_head', None))]
    for key, head in heads:
        index = getattr(head, 'in_index', None)
        found = getattr(head, 'in_channels', None)
        if isinstance(index, int) and isinstance(found, int):
            checks.append((f'{key}.in_channels', found, out[index]))
        elif isinstance(index, (list, tuple)) and isinstance(
                found, (list, tuple)):
            checks.append((f'{key}.in_channels', list(found),
                           [out[i] for i in index]))
        # DeepLabV3+ also reads the first feature map.
        bottleneck = getattr(head, 'c1_bottleneck', None)
        if bottleneck is not None:
            checks.append((f'{key}.c1_in_channels',
                           bottleneck.conv.in_channels, out[0]))
    if getattr(model, 'head', None) is not None:
        checks += last('head.in_channels', model.head)
    return checks


def check_channels(model: nn.Module) -> None:
    """Compare what the backbone gives with what neck and heads read.

    Raises:
        ValueError: If they disagree, with the value that fits.
    """
    found = sparse_backbone(model)
    if found is None or found[0] != 'backbone.':
        return
    backbone = found[1]
    checks = _consumer_channels(model, backbone.out_channels,
                                tuple(backbone.out_indices))  # type: ignore
    for key, value, expected in checks:
        if value != expected:
            raise ValueError(
                f'model.{key} is {value}, but the backbone (family='
                f'{backbone.family!r}, sparsity={backbone.sparsity}, '
                f'{backbone.base_channels} channels at its first '  # type: ignore
                f'stage) gives {expected}; write {key}={expected}.')
