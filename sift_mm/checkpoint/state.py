"""State of mask training in a checkpoint; checks of weights and keys."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sift_mm.checkpoint.packing import pack
from sift_mm.errors import UserError
from sift_mm.names import shortened

#: Key of the mask training in a checkpoint.
CHECKPOINT_KEY = 'sparse_training'
#: Version of the state; a newer one may have another meaning.
VERSION = 1
#: Key of the state's digest.
DIGEST = 'digest'


def mask_training(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the mask training of a checkpoint, or None.

    Raises:
        ValueError: If it has a newer version or no masks, or is damaged.
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
        raise UserError(
            f"The checkpoint's mask training is of version {version}, and "
            f'this sift_mm reads up to {VERSION}: install a newer one.'
        )
    elif not all(
        isinstance(mask, Tensor) and mask.dtype == torch.bool
        for mask in masks.values()
    ):
        wrong = 'a mask is no bool tensor'
    elif not is_as_saved(state):
        wrong = 'it is not what was saved'
    if wrong:
        raise UserError(
            f'The value of {CHECKPOINT_KEY!r} in the checkpoint is damaged: '
            f'{wrong}. Take another checkpoint of that run.'
        )
    return dict(state)


def with_digest(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state with a digest of its contents."""
    return {**state, DIGEST: _digest(state)}


def is_as_saved(state: Mapping[str, Any]) -> bool:
    """Return True if the digest fits; old states have none."""
    return DIGEST not in state or state[DIGEST] == _digest(state)


def _digest(state: Mapping[str, Any]) -> str:
    def normalize(value: Any) -> Any:
        if isinstance(value, Mapping):
            return sorted((repr(k), normalize(v)) for k, v in value.items())
        if isinstance(value, (list, tuple)):
            return [normalize(item) for item in value]
        if isinstance(value, Tensor) and value.is_sparse:
            value = value.coalesce()
            return [
                *value.shape,
                *map(normalize, (value.indices(), value.values())),
            ]
        if isinstance(value, Tensor):
            data = value.detach().cpu().contiguous().flatten()
            digest = hashlib.sha256(
                data.view(torch.uint8).numpy().data
            ).hexdigest()
            return f'{value.dtype} {tuple(value.shape)} {digest}'
        return repr(value)

    content = {key: value for key, value in state.items() if key != DIGEST}
    return hashlib.sha256(repr(normalize(content)).encode()).hexdigest()


@contextmanager
def with_context(path: Any) -> Iterator[None]:
    """Add the path of a checkpoint, unless it is None, to errors.

    Raises:
        UserError: With the path; also in place of errors of values with a
            wrong type.
    """
    before = '' if path is None else f'{path}: '
    try:
        yield
    except UserError as error:
        raise UserError(f'{before}{error}') from error
    except (
        AttributeError,
        IndexError,
        KeyError,
        RuntimeError,
        TypeError,
    ) as error:
        raise UserError(
            f'{before}The checkpoint is damaged, or of another program: '
            f'{error!r}. Take another one of that run.'
        ) from error


def check_finite(state: Mapping[str, Any]) -> None:
    """Refuse a ``state_dict`` with NaN or infinite weights.

    A buffer of zeros and minus infinities, an attention mask, passes.

    Raises:
        ValueError: If a weight is NaN or infinite.
    """
    for name, value in state.items():
        # isfinite does not support 8-bit types.
        if not isinstance(value, Tensor) or value.dtype.itemsize == 1:
            continue
        if value.isfinite().all():
            continue
        if not ((value == 0) | value.isneginf()).all():
            raise UserError(
                f'{name!r} of the checkpoint is NaN or infinite: its training '
                'diverged. Take an earlier checkpoint.'
            )


def check_masks(state: Mapping[str, Any], masks: Mapping[str, Tensor]) -> None:
    """Refuse masks that do not fit the weights of a ``state_dict``.

    Raises:
        ValueError: If a mask has no weight of its shape, or the weight is not
            zero outside the mask.
    """
    for name, mask in masks.items():
        if weight_of(state, name, mask).masked_fill(mask, 0).any():
            raise UserError(
                f'The weight {name!r} is not zero outside its mask: weight '
                'and mask are from different trainings.'
            )


def weight_of(state: Mapping[str, Any], name: str, mask: Tensor) -> Tensor:
    """Return the weight of a mask.

    Raises:
        ValueError: If there is no weight of the mask's shape.
    """
    weight = state.get(name)
    if weight is None or weight.shape != mask.shape:
        raise UserError(f'The mask of {name!r} has no weight of its shape.')
    return weight


def pretrained_cfg(init_cfg: Any) -> Mapping[str, Any] | None:
    """Return the part of an ``init_cfg`` that loads weights from a file.

    Configs of PVT have a checkpoint without type.
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


def without_prefix(
    entries: Mapping[str, Any], prefix: str | None
) -> dict[str, Any]:
    """Return the entries below a prefix, which may end in a dot."""
    if not (prefix or '').startswith('module.'):
        entries = {re.sub(r'^module\.', '', k): v for k, v in entries.items()}
    if not prefix:
        return dict(entries)
    prefix = prefix.removesuffix('.') + '.'
    return {
        name.removeprefix(prefix): value
        for name, value in entries.items()
        if name.startswith(prefix)
    }


def check_keys(
    module: nn.Module, state: Mapping[str, Any], path: str, prefix: str | None
) -> None:
    """Refuse a ``state_dict`` of another backbone.

    MMEngine only warns of missing keys, and leaves random weights. The
    backbone's ``core_keys`` are required, or all keys without them; in the
    checkpoint they have the prefix.

    Raises:
        ValueError: If a weight is missing or has another shape, or the
            checkpoint has more layers; with the list.
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
        # A classifier beside the network is no layer of it, and an additional
        # bias (Caffe's) belongs to a known layer.
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
        f'{len(keys)} {kind}: {shortened(keys)}'
        for kind, keys in kinds.items()
        if keys
    ]
    if wrong:
        raise UserError(
            f'The checkpoint {path} (prefix={prefix!r}) is not of this '
            'network, '
            f'{type(module).__name__}({module.extra_repr()}): '
            f'{"; ".join(wrong)}. Give the checkpoint of a network of the '
            'same depth, family and sparsity, or correct the prefix.'
        )


def check_resumable(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the mask training of a checkpoint for a resumed run.

    Raises:
        ValueError: If a part of the run or of the mask training is missing,
            damaged, or from another iteration.
    """
    if not isinstance(checkpoint.get('message_hub'), Mapping):
        raise UserError(
            'A published checkpoint cannot be resumed from: optimizer and '
            'history of the masks were left out. Start a new run with '
            'load_from.'
        )
    optimizer = checkpoint.get('optimizer')
    if not isinstance(optimizer, Mapping):
        raise UserError(
            'The checkpoint has no optimizer, and a resumed run needs its '
            'state: set save_optimizer of CheckpointHook, or start a new run '
            'with load_from.'
        )
    if 'param_schedulers' not in checkpoint and any(
        'initial_lr' in group for group in optimizer.get('param_groups', ())
    ):
        raise UserError(
            'The checkpoint has no param_schedulers, and the learning rate '
            'would restart: set save_param_scheduler of CheckpointHook, or '
            'start a new run with load_from.'
        )
    meta = checkpoint.get('meta')
    if not isinstance(meta, Mapping) or not all(
        isinstance(meta.get(key), int) for key in ('epoch', 'iter')
    ):
        raise UserError(
            'The meta of the checkpoint lacks its epoch and iteration: take '
            'another checkpoint of that run.'
        )
    check_finite(checkpoint.get('state_dict', {}))
    state = mask_training(checkpoint)
    if state is not None and (wrong := next(_faults(state, meta['iter']), '')):
        raise UserError(
            f'The mask training of the checkpoint is not whole: {wrong}. '
            'Take another checkpoint of that run.'
        )
    return state


def _faults(state: Mapping[str, Any], iteration: int) -> Iterator[str]:
    """Yield the reasons why the mask training cannot be resumed."""
    history: Any = state.get('history')
    history = history if isinstance(history, Mapping) else {}
    ever, always = history.get('ever'), history.get('always')
    for key, what in (('steps', 'steps are'), ('seed', 'the seed is')):
        if not isinstance(state.get(key), int):
            yield f'{what} missing'
    if not isinstance(ever, Mapping) or not isinstance(always, Mapping):
        yield 'the history is missing'
    if state.get('iter', iteration) != iteration:
        yield (
            f'it is of iteration {state["iter"]}, and the checkpoint of '
            f'iteration {iteration}'
        )
    for name, mask in state['masks'].items():
        bits = pack(mask)
        if not _within(bits, ever.get(name)):
            yield f'{name!r} has weights that the history does not have'
        if not _within(always.get(name), bits):
            yield f'{name!r} lacks weights that it always had'


def _within(part: Tensor | None, whole: Tensor | None) -> bool:
    """Return True if packed bits are a subset of others."""
    if part is None or whole is None or part.shape != whole.shape:
        return False
    return torch.equal(part.cpu() & whole.cpu(), part.cpu())
