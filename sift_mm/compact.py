"""Checkpoints that hold of a masked weight what is active, and where.

A bit a weight says where. Coding the gaps would take 0.8 bits at a density of
0.1, of 4.2 bits in all, and more than a bit from 0.125 on.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sift_mm.checkpoint import CHECKPOINT_KEY, mask_training, weight_of
from sift_mm.errors import Mistake
from sift_mm.sparsity.packing import count, pack, unpack

# Where the packed weights are in a checkpoint, and the version of them.
COMPACT_KEY = 'compact'
VERSION = 1


def compact(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint without the zeros outside its masks, for :func:`expand`.

    All of it is what ``torch.load`` reads with ``weights_only``; of ``meta``,
    other values are written as text.

    Raises:
        ValueError: If there are no masks, or not those of these weights.
    """
    training = mask_training(checkpoint)
    if training is None:
        raise Mistake('The checkpoint has no masks to pack its weights by.')
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
    packed = {'version': VERSION, 'layers': layers}
    return plain(checkpoint, keep=('state_dict', CHECKPOINT_KEY)) | {
        'state_dict': state,
        CHECKPOINT_KEY: training,
        COMPACT_KEY: packed,
    }


def expand(checkpoint: Mapping[str, Any], path: str) -> dict[str, Any]:
    """What :func:`compact` was given; another checkpoint as it is.

    The path is for messages.

    Raises:
        ValueError: If it is damaged, or of a newer version.
    """
    if not isinstance(checkpoint, Mapping) or COMPACT_KEY not in checkpoint:
        return checkpoint  # type: ignore[return-value]
    try:
        packed = checkpoint[COMPACT_KEY]
        if packed['version'] > VERSION:
            raise Mistake(f'it is of version {packed["version"]}')
        state, masks = dict(checkpoint['state_dict']), {}
        for name, layer in packed['layers'].items():
            masks[name] = _mask(layer)
            if state[name] is None:
                state[name] = _weight(masks[name], layer['values'])
        training = {**checkpoint[CHECKPOINT_KEY], 'masks': masks}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Mistake(
            f'{path} is damaged, or of a newer sift_mm, which then has to be '
            f'installed: its packed weights cannot be read ({error}).'
        ) from error
    kept = {k: v for k, v in checkpoint.items() if k != COMPACT_KEY}
    return {**kept, 'state_dict': state, CHECKPOINT_KEY: training}


def _mask(layer: Mapping[str, Any]) -> Tensor:
    shape, bits = torch.Size(layer['shape']), layer['bits'].cpu()
    if bits.dtype != torch.uint8 or bits.shape != (-(-shape.numel() // 8),):
        raise Mistake('a mask is not of its shape')
    return unpack(bits, shape.numel()).view(shape).to(layer['bits'].device)


def _weight(mask: Tensor, values: Tensor) -> Tensor:
    if values.shape != (count(mask),):
        raise Mistake('a weight has other values than its mask')
    return values.new_zeros(mask.shape).masked_scatter_(mask, values)


def plain(value: Any, keep: tuple[str, ...] = ()) -> Any:
    """A value without types that ``weights_only`` refuses.

    What is under the keys to keep stays as it is.
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
