"""Accumulated gradients in a checkpoint saved between optimizer steps."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner
from torch import Tensor, nn

from sift_mm.engine.wrappers import unwrap

Gradients = dict[str, Tensor]


def partial_gradients(
    runner: Runner, ends_epoch: bool
) -> list[Gradients] | None:
    """Gather the gradients of all processes, if a checkpoint is saved now.

    All processes call this: their gradients differ until they are averaged.

    Args:
        runner (Runner): Runner of the training.
        ends_epoch (bool): True after an epoch, False after an iteration.

    Returns:
        list: Gradients by parameter name for each process; None if no step is
        partial, or no checkpoint is saved.
    """
    if runner.optim_wrapper.should_update() or not _saves(runner, ends_epoch):
        return None
    return all_gather_object(
        {
            name: parameter.grad.cpu().clone()
            for name, parameter in unwrap(runner.model).named_parameters()
            if parameter.grad is not None
        }
    )


def restore_gradients(
    saved: Sequence[Mapping[str, Tensor]], model: nn.Module
) -> str:
    """Restore the gradients of an interrupted step.

    Args:
        saved (Sequence): Gradients by name for each process.
        model (nn.Module): Model without wrapper.

    Returns:
        str: Why that is impossible, or ''.
    """
    if len(saved) != get_world_size():
        return (
            f'The run was interrupted in a step of {len(saved)} processes; '
            f'now there are {get_world_size()}, and the gradients of that '
            'step are lost.'
        )
    gradients = saved[get_rank()]
    for name, parameter in model.named_parameters():
        if name in gradients:
            parameter.grad = gradients[name].to(parameter)
    return ''


def _saves(runner: Runner, ends_epoch: bool) -> bool:
    """Return True if a hook saves a checkpoint now."""
    for hook in runner.hooks:
        if not isinstance(hook, CheckpointHook) or hook.by_epoch != ends_epoch:
            continue
        due: Any = hook.every_n_train_iters
        last = hook.is_last_train_iter
        if ends_epoch:
            due, last = hook.every_n_epochs, hook.is_last_train_epoch
        if due(runner, hook.interval, hook.save_begin) or (
            hook.save_last and last(runner)
        ):
            return True
    return False
