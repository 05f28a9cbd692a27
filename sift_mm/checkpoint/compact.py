"""Compact checkpoints: active values and packed positions of masked weights.

Positions take one bit per weight, or one per place of a block of filters that
share their places. Coded gaps would take 0.8 bits (of 4.2 bits
in total) at density 0.1, and more than one bit from density 0.125 on.
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
#: Filters of a block whose places are stored once, tried in this order.
BLOCKS = (4, 2)


def compact(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Pack the masked weights of a checkpoint, for :func:`expand`.

    ``torch.load`` reads the result with ``weights_only``: values of other
    types in ``meta`` become text.

    Raises:
        ValueError: If the checkpoint has no masks, or masks of other weights.
    """
    training = mask_training(checkpoint)
    if training is None:
        raise UserError('The checkpoint has no masks to pack its weights by.')
    masks = training.pop('masks')
    state = dict(checkpoint['state_dict'])
    layers = {}
    for name, mask in masks.items():
        weight = weight_of(state, name, mask)
        layers[name] = {'shape': list(mask.shape), **_positions(mask)}
        # A weight with nonzeros outside its mask is not packed.
        if not weight.masked_fill(mask, 0).any():
            layers[name]['values'] = weight[mask]
            state[name] = None
    packed = with_digest({'version': VERSION, 'layers': layers})
    return plain(checkpoint, keep=('state_dict', CHECKPOINT_KEY)) | {
        'state_dict': state,
        CHECKPOINT_KEY: training,
        COMPACT_KEY: packed,
    }


def _positions(mask: Tensor) -> dict[str, Any]:
    """Return the bits of a mask, of one filter for each block of filters."""
    for filters in BLOCKS if mask.ndim > 1 else ():
        first = mask[::filters]
        if torch.equal(mask, _of_blocks(first, filters, len(mask))):
            return {'bits': pack(first), 'filters': filters}
    return {'bits': pack(mask)}


def _of_blocks(first: Tensor, filters: int, count: int) -> Tensor:
    """Return the mask of ``count`` filters from the first of each block."""
    return first.repeat_interleave(filters, 0)[:count]


def expand(checkpoint: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Expand a compact checkpoint, and return any other unchanged.

    Args:
        checkpoint: Checkpoint with or without packed weights.
        path: Path of the file, for messages.

    Raises:
        ValueError: If the checkpoint is damaged, or has a newer version.
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
        # Before any memory is allocated.
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
    """Refuse layers whose weights would be larger than the file's bits."""
    storages = []
    for name, layer in layers.items():
        shape, bits = layer['shape'], layer['bits']
        values, kept = layer.get('values'), state[name]
        if not all(type(size) is int and size >= 0 for size in shape):
            raise UserError(f'the shape of {name!r} is {shape}')
        size = math.prod(_stored(layer))
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


def _stored(layer: Mapping[str, Any]) -> list[int]:
    """Return the shape of a mask's bits: one filter for each block."""
    shape, filters = list(layer['shape']), layer.get('filters', 1)
    if filters == 1:
        return shape
    if filters not in BLOCKS or len(shape) < 2:
        raise UserError(f'a mask of shape {shape} has blocks of {filters}')
    return [-(-shape[0] // filters), *shape[1:]]


def _mask(layer: Mapping[str, Any]) -> Tensor:
    shape, bits = _stored(layer), layer['bits'].cpu()
    size = math.prod(shape)
    if size % 8 and int(bits[-1]) & (0xFF >> size % 8):
        raise UserError('a mask has more bits than its shape')
    mask = unpack(bits, size).view(shape).to(layer['bits'].device)
    if 'filters' in layer:
        mask = _of_blocks(mask, layer['filters'], layer['shape'][0])
    return mask


def _weight(mask: Tensor, values: Tensor) -> Tensor:
    if values.shape != (count(mask),):
        raise UserError('a weight has other values than its mask')
    return values.new_zeros(mask.shape).masked_scatter_(mask, values)


def plain(value: Any, keep: tuple[str, ...] = ()) -> Any:
    """Return a copy of a value without types that ``weights_only`` refuses.

    Values under the keys to keep are not changed.
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
