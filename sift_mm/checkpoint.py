"""What is known about a checkpoint: mask training in it, weights, keys."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sift_mm.errors import Mistake

# Where masks and all else of the mask training are in a checkpoint.
CHECKPOINT_KEY = 'sparse_training'
# Of what stands there: what a newer release writes may mean something else.
VERSION = 1
# What stands there was saved with, to see that it is that.
DIGEST = 'digest'
# Keys that are named in a message, of each kind.
SHOWN = 6


def mask_training(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """The mask training of a checkpoint, its masks under 'masks', or None.

    Raises:
        ValueError: If it is of a newer version, holds no masks, or is not
            what was saved.
    """
    state = checkpoint.get(CHECKPOINT_KEY)
    if state is None:
        return None
    state = state if isinstance(state, Mapping) else {}
    masks, version = state.get('masks'), state.get('version', VERSION)
    wrong = ''
    if not isinstance(masks, Mapping) or not isinstance(version, int):
        wrong = 'it holds no masks'
    elif version > VERSION:
        raise Mistake(
            f"The checkpoint's mask training is of version {version}, and "
            f'this sift_mm reads up to {VERSION}: install a newer one.'
        )
    elif not all(
        isinstance(mask, Tensor) and mask.dtype == torch.bool
        for mask in masks.values()
    ):
        wrong = 'a mask is no bool tensor'
    elif DIGEST in state and state[DIGEST] != _digest(state):
        wrong = 'it is not what was saved'
    if wrong:
        raise Mistake(
            f'What the checkpoint has under {CHECKPOINT_KEY!r} is damaged: '
            f'{wrong}. Take another checkpoint of that run.'
        )
    return dict(state)


def sealed(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state of the mask training with a digest of all of it."""
    return {**state, DIGEST: _digest(state)}


def _digest(state: Mapping[str, Any]) -> str:
    def written(value: Any) -> Any:
        if isinstance(value, Mapping):
            return sorted((repr(k), written(v)) for k, v in value.items())
        if isinstance(value, (list, tuple)):
            return [written(item) for item in value]
        if isinstance(value, Tensor):
            data = value.detach().cpu().flatten().view(torch.uint8)
            digest = hashlib.sha256(data.numpy().data).hexdigest()
            return f'{value.dtype} {tuple(value.shape)} {digest}'
        return repr(value)

    named = {key: value for key, value in state.items() if key != DIGEST}
    return hashlib.sha256(repr(written(named)).encode()).hexdigest()


@contextmanager
def named(path: Any) -> Iterator[None]:
    """Name a checkpoint, where its path is known, in what is wrong with it.

    Raises:
        Mistake: In place of one, and of what Python raises where a value is
            of no type that it can be.
    """
    before = '' if path is None else f'{path}: '
    try:
        yield
    except Mistake as error:
        raise Mistake(f'{before}{error}') from error
    except (
        AttributeError,
        IndexError,
        KeyError,
        RuntimeError,
        TypeError,
    ) as error:
        raise Mistake(
            f'{before}The checkpoint is damaged, or of another program: '
            f'{error!r}. Take another one of that run.'
        ) from error


def check_finite(state: Mapping[str, Any]) -> None:
    """Refuse weights that are no numbers.

    Args:
        state (Mapping[str, Any]): A ``state_dict``. A buffer of zeros and
            minus infinities, which masks attention, is let through.

    Raises:
        ValueError: If one is NaN or infinite.
    """
    for name, value in state.items():
        # PyTorch cannot say that of types of eight bits.
        if not isinstance(value, Tensor) or value.dtype.itemsize == 1:
            continue
        if value.isfinite().all():
            continue
        if not ((value == 0) | value.isneginf()).all():
            raise Mistake(
                f'{name!r} of the checkpoint is NaN or infinite: its training '
                'diverged. Take an earlier checkpoint.'
            )


def check_masks(state: Mapping[str, Any], masks: Mapping[str, Tensor]) -> None:
    """Refuse masks that are not those of the weights of a ``state_dict``.

    Raises:
        ValueError: If one is of no weight, of another shape, or of a weight
            that is not zero outside it.
    """
    for name, mask in masks.items():
        weight = state.get(name)
        if weight is None or weight.shape != mask.shape:
            raise Mistake(f'The mask of {name!r} is of no weight.')
        if weight.masked_fill(mask, 0).any():
            raise Mistake(
                f'The weight {name!r} is not zero outside its mask: they are '
                'not of the same training.'
            )


def pretrained_cfg(init_cfg: Any) -> Mapping[str, Any] | None:
    """The part of a module's ``init_cfg`` that loads weights from a file.

    Configs of PVT have a checkpoint without a type.
    """
    configs = [init_cfg] if isinstance(init_cfg, Mapping) else init_cfg or []
    for config in configs:
        kind = config.get('type')
        if (
            kind in ('Pretrained', 'PretrainedInit')
            or (kind is None and 'checkpoint' in config)
            or getattr(kind, '__name__', '') == 'PretrainedInit'
        ):
            return config
    return None


def load_pretrained(config: Mapping[str, Any]) -> dict[str, Any]:
    """Read the checkpoint of an ``init_cfg`` as MMEngine does.

    Weights alone are put under the key ``state_dict``.
    """
    from mmengine.runner import CheckpointLoader

    checkpoint = CheckpointLoader.load_checkpoint(
        config['checkpoint'], map_location='cpu'
    )
    if 'state_dict' not in checkpoint:
        checkpoint = {'state_dict': checkpoint}
    with named(config['checkpoint']):
        check_finite(checkpoint['state_dict'])
    return checkpoint


def without_prefix(
    named: Mapping[str, Any], prefix: str | None
) -> dict[str, Any]:
    """What lies under a prefix, with or without its dot, by name below it."""
    if not (prefix or '').startswith('module.'):
        named = {re.sub(r'^module\.', '', k): v for k, v in named.items()}
    if not prefix:
        return dict(named)
    prefix = prefix.removesuffix('.') + '.'
    return {
        name.removeprefix(prefix): value
        for name, value in named.items()
        if name.startswith(prefix)
    }


def check_keys(
    module: nn.Module, state: Mapping[str, Any], path: str, prefix: str | None
) -> None:
    """Refuse a checkpoint that is not of this backbone.

    MMEngine only warns of keys that do not fit, and leaves what they should
    have filled at random.

    Args:
        module (nn.Module): The backbone; its ``core_keys`` say which keys
            must be there, all if it has none.
        state (Mapping[str, Any]): The checkpoint's ``state_dict``.
        path (str): Of the checkpoint, for the message.
        prefix (str, optional): Of the backbone's names in the checkpoint.

    Raises:
        ValueError: If a weight is missing or of another shape, or the
            checkpoint has more layers, with the list.
    """
    found = without_prefix(state, prefix)
    core = getattr(module, 'core_keys', None)
    wanted = module.state_dict()
    children = {name for name, _ in module.named_children()}
    modules = {name for name, _ in module.named_modules()}
    kinds = {
        'missing in the checkpoint': [
            k
            for k in wanted
            if k not in found
            and (core is None or core.match(k))
            and not k.endswith('num_batches_tracked')
            and 'conv_offset' not in k
        ],
        'of another shape': [
            f'{k} {tuple(found[k].shape)} instead of {tuple(v.shape)}'
            for k, v in wanted.items()
            if k in found and found[k].shape != v.shape
        ],
        # A classifier beside the network, say, is none of its layers, and a
        # bias more (Caffe's) is no other layer.
        'unknown to the network': [
            k
            for k in found
            if k.partition('.')[0] in children
            and (
                k not in wanted
                if core is None
                else k.rpartition('.')[0] not in modules
            )
        ],
    }
    wrong = [
        f'{len(keys)} {kind}: {", ".join(keys[:SHOWN])}'
        + (', ...' if len(keys) > SHOWN else '')
        for kind, keys in kinds.items()
        if keys
    ]
    if wrong:
        raise Mistake(
            f'The checkpoint {path} (prefix={prefix!r}) is not of this '
            'network, '
            f'{type(module).__name__}({module.extra_repr()}): '
            f'{"; ".join(wrong)}. Give the checkpoint of a network of the '
            'same depth, family and sparsity, or correct the prefix.'
        )
