"""Whether a run can go on from a checkpoint as it was."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sift_mm.checkpoint import check_finite, mask_training
from sift_mm.errors import Mistake
from sift_mm.sparsity.packing import pack


def check_resumable(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """The mask training of a checkpoint from which a run goes on as it was.

    Raises:
        ValueError: If a part of the run or of its mask training is missing,
            damaged, or of another moment.
    """
    if not isinstance(checkpoint.get('message_hub'), Mapping):
        raise Mistake(
            'A published checkpoint cannot be resumed from: optimizer and '
            'history of the masks were left out. Start a new run with '
            'load_from.'
        )
    optimizer = checkpoint.get('optimizer')
    if not isinstance(optimizer, Mapping):
        raise Mistake(
            'The checkpoint has no optimizer, without which no run goes on as '
            'it was: let CheckpointHook save_optimizer, or start a new run '
            'with load_from.'
        )
    if 'param_schedulers' not in checkpoint and any(
        'initial_lr' in group for group in optimizer.get('param_groups', ())
    ):
        raise Mistake(
            'The checkpoint has no param_schedulers, and the learning rate '
            'would start anew: let CheckpointHook save_param_scheduler, or '
            'start a new run with load_from.'
        )
    meta = checkpoint.get('meta')
    if not isinstance(meta, Mapping) or not all(
        isinstance(meta.get(key), int) for key in ('epoch', 'iter')
    ):
        raise Mistake(
            'The checkpoint does not say in its meta after which epoch and '
            'iteration it was saved: take another one of that run.'
        )
    check_finite(checkpoint.get('state_dict', {}))
    state = mask_training(checkpoint)
    if state is not None:
        _check_masks(state, meta['iter'])
    return state


def _check_masks(state: Mapping[str, Any], iteration: int) -> None:
    """See :func:`check_resumable`."""
    history = state.get('history')
    history = history if isinstance(history, Mapping) else {}
    ever, always = history.get('ever'), history.get('always')
    wrong = ''
    if not isinstance(state.get('steps'), int):
        wrong = 'steps are missing'
    elif not isinstance(state.get('seed'), int):
        wrong = 'the seed is missing'
    elif not isinstance(ever, Mapping) or not isinstance(always, Mapping):
        wrong = 'the history is missing'
    elif state.get('iter', iteration) != iteration:
        wrong = (
            f'it is of iteration {state["iter"]}, and the checkpoint of '
            f'iteration {iteration}'
        )
    else:
        for name, mask in state['masks'].items():
            bits = pack(mask)
            if not _within(bits, ever.get(name)):
                wrong = f'{name!r} has weights that the history does not have'
            if not _within(always.get(name), bits):
                wrong = f'{name!r} lacks weights that it always had'
    if wrong:
        raise Mistake(
            f'The mask training of the checkpoint is not whole: {wrong}. '
            'Take another checkpoint of that run.'
        )


def _within(part: Tensor | None, whole: Tensor | None) -> bool:
    """Whether packed bits are among others."""
    if part is None or whole is None or part.shape != whole.shape:
        return False
    return torch.equal(part.cpu() & whole.cpu(), part.cpu())
