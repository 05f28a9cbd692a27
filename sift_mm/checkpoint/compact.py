"""Compact checkpoints: active values and packed positions of masked weights.

A bit a weight says where. Coding the gaps would take 0.8 bits at a density of
0.1, of 4.2 bits in all, and more than a bit from 0.125 on.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sift_mm.checkpoint.packing import count, pack, unpack
from sift_mm.checkpoint.state import (
    CHECKPOINT_KEY,
    is_as_saved,
    mask_training,
    weight_of,
    with_digest,
)
from sift_mm.errors import UserError

#: Key of the packed weights in a checkpoint, and their version.
COMPACT_KEY = 'compact'
VERSION = 1


def compact(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the zeros outside the masks, for :func:`expand`.

    ``torch.load`` reads all of it with ``weights_only``; of ``meta``, other
    values are written as text.

    Raises:
        ValueError: If there are no masks, or not those of these weights.
    """
    training = mask_training(checkpoint)
    if training is None:
        raise UserError('The checkpoint has no masks to pack its weights by.')
    masks = training.pop('masks')
    state = dict(checkpoint['state_dict'])
    layers = {}
    for name, mask in masks.items():
        weight = weight_of(state, name, mask)
        layers[name] = {'shape': list(mask.shape), 'bits': pack(mask)}
        # A weight that is not zero outside its mask stays as it is.
        if not weight.masked_fill(mask, 0).any():
            layers[name]['values'] = weight[mask]
            state[name] = None
    packed = with_digest({'version': VERSION, 'layers': layers})
    return plain(checkpoint, keep=('state_dict', CHECKPOINT_KEY)) | {
        'state_dict': state,
        CHECKPOINT_KEY: training,
        COMPACT_KEY: packed,
    }


def expand(checkpoint: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Undo :func:`compact`, and return another checkpoint as it is.

    Args:
        checkpoint: With or without packed weights.
        path: Its file, for messages.

    Raises:
        ValueError: If it is damaged, or of a newer version.
    """
    if not isinstance(checkpoint, Mapping) or COMPACT_KEY not in checkpoint:
        return checkpoint  # type: ignore[return-value]
    try:
        packed = checkpoint[COMPACT_KEY]
        if packed['version'] != VERSION:
            raise UserError(f'it is of version {packed["version"]}')
        state = dict(checkpoint['state_dict'])
        training = dict(checkpoint[CHECKPOINT_KEY])
        if 'masks' in training:
            raise UserError('its masks are there twice')
        # Before any memory is taken.
        _check_layers(packed['layers'], state)
        if not is_as_saved(packed):
            raise UserError('they are not what was saved')
        training['masks'] = masks = {}
        for name, layer in packed['layers'].items():
            masks[name] = _mask(layer)
            if state[name] is None:
                state[name] = _weight(masks[name], layer['values'])
    except (
        AttributeError,
        KeyError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise UserError(
            f'{path} is damaged, or of a newer sift_mm, which then has to be '
            f'installed: its packed weights cannot be read ({error}).'
        ) from error
    kept = {k: v for k, v in checkpoint.items() if k != COMPACT_KEY}
    return {**kept, 'state_dict': state, CHECKPOINT_KEY: training}


def _check_layers(
    layers: Mapping[str, Mapping[str, Any]], state: Mapping[str, Any]
) -> None:
    """Refuse layers that would take more memory than the file has bits for."""
    storages = []
    for name, layer in layers.items():
        shape, bits = layer['shape'], layer['bits']
        values, kept = layer.get('values'), state[name]
        if not all(type(size) is int and size >= 0 for size in shape):
            raise UserError(f'the shape of {name!r} is {shape}')
        size = math.prod(shape)
        if (
            bits.dtype != torch.uint8
            or bits.shape != (-(-size // 8),)
            or not bits.is_contiguous()
        ):
            raise UserError(f'the mask of {name!r} is not of its shape')
        if size:
            storages.append(bits.untyped_storage().data_ptr())
        if (kept is None) == (values is None):
            raise UserError(f'{name!r} has no weight, or two')
        if kept is not None and list(kept.shape) != list(shape):
            raise UserError(f'the mask of {name!r} is not of its shape')
        if values is not None and not (
            values.dim() == 1 and values.is_contiguous()
        ):
            raise UserError(f'the values of {name!r} are no list')
    if len({*storages}) != len(storages):
        raise UserError('two layers share their bits')


def _mask(layer: Mapping[str, Any]) -> Tensor:
    shape, bits = layer['shape'], layer['bits'].cpu()
    size = math.prod(shape)
    if size % 8 and int(bits[-1]) & (0xFF >> size % 8):
        raise UserError('a mask has more bits than its shape')
    return unpack(bits, size).view(shape).to(layer['bits'].device)


def _weight(mask: Tensor, values: Tensor) -> Tensor:
    if values.shape != (count(mask),):
        raise UserError('a weight has other values than its mask')
    return values.new_zeros(mask.shape).masked_scatter_(mask, values)


def plain(value: Any, keep: tuple[str, ...] = ()) -> Any:
    """Return a value without types that ``weights_only`` refuses.

    Values under the keys to keep stay as they are.
    """
    if isinstance(value, Mapping):
        return {k: v if k in keep else plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or type(value) in (bool, int, float, str, Tensor):
        return value
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    return str(value)
