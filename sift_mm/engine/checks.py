"""Mistakes of a config, found before the first iteration."""

from typing import Any

from mmengine.model import is_model_wrapper
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from sift_mm.engine.plan import sparse_backbone


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


def consumer_channels(
    model: Any, out: list[int]
) -> list[tuple[str, Any, Any]]:
    """What the config says, and should say, of channels that are read.

    Only where the meaning of ``in_channels`` is known: necks of the FPN
    family, heads of mmseg, and a classifier's head.

    Args:
        model (nn.Module): Detector, segmentor or classifier.
        out (list[int]): Channels of the features that a backbone gives.

    Returns:
        list[tuple[str, Any, Any]]: (key below ``model`` in the config, value
        found, value expected).
    """
    neck: Any = getattr(model, 'neck', None)
    if hasattr(neck, 'lateral_convs'):
        return [('neck.in_channels', list(neck.in_channels), out)]
    if neck is not None and any(True for _ in neck.parameters()):
        return []
    checks: list[tuple[str, Any, Any]] = []
    for key in ('decode_head', 'auxiliary_head'):
        reader: Any = getattr(model, key, None)
        several = isinstance(reader, nn.ModuleList)
        for i, one in enumerate(reader if several else [reader]):
            checks += _segmentation_head(
                f'{key}.{i}' if several else key, one, out
            )
    head: Any = getattr(model, 'head', None)
    if isinstance(getattr(head, 'in_channels', None), int):
        checks.append(('head.in_channels', head.in_channels, out[-1]))
    return checks


def _segmentation_head(
    key: str, head: Any, out: list[int]
) -> list[tuple[str, Any, Any]]:
    index, found = (
        getattr(head, name, None) for name in ('in_index', 'in_channels')
    )
    indices = [index] if isinstance(index, int) else index
    if indices is None or found is None or max(indices) >= len(out):
        return []
    expected: Any = [out[i] for i in indices]
    if isinstance(found, int):
        # Of several maps that are concatenated, a head knows the sum.
        expected = sum(expected)
    checks = [
        (
            f'{key}.in_channels',
            found if isinstance(found, int) else list(found),
            expected,
        )
    ]
    if hasattr(head, 'c1_bottleneck'):
        # DeepLabV3+ also reads the first feature map.
        checks.append(
            (
                f'{key}.c1_in_channels',
                head.c1_bottleneck.conv.in_channels,
                out[0],
            )
        )
    return checks


def check_channels(model: nn.Module) -> None:
    """Compare what the backbone gives with what neck and heads read.

    Raises:
        ValueError: If they disagree, with the value that fits.
    """
    found = sparse_backbone(model)
    if found is None or found[0] != 'backbone.':
        return
    backbone: Any = found[1]
    if not backbone.grows:
        return
    for key, value, expected in consumer_channels(
        model, backbone.out_channels
    ):
        if value != expected:
            raise ValueError(
                f'model.{key} is {value}, but the backbone (family='
                f'{backbone.family!r}, sparsity={backbone.sparsity}, '
                f'{backbone.base_channels} channels at its first '
                f'stage) gives {expected}; write {key}={expected}.'
            )
