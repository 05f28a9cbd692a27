"""Gradients that wait for their step while a checkpoint is saved."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner
from torch import Tensor, nn

Gradients = dict[str, Tensor]


def partial_gradients(
    runner: Runner, model: nn.Module, ends_epoch: bool
) -> list[Gradients] | None:
    """The gradients of each process, if a checkpoint is saved within a step.

    To be called in all processes: before their gradients are averaged, each
    has its own. The model comes without its wrapper.
    """
    if runner.optim_wrapper.should_update() or not _saves(runner, ends_epoch):
        return None
    return all_gather_object(
        {
            name: parameter.grad.cpu().clone()
            for name, parameter in model.named_parameters()
            if parameter.grad is not None
        }
    )


def restore_gradients(
    saved: Sequence[Mapping[str, Tensor]], model: nn.Module
) -> str:
    """Give parameters the gradients that they had when the run was broken.

    Those of each process, by name. Returns why that was not possible, or ''.
    """
    if len(saved) != get_world_size():
        return (
            f'The run was broken in the middle of a step of {len(saved)} '
            f'processes; now there are {get_world_size()}, and the gradients '
            'of that step are lost.'
        )
    gradients = saved[get_rank()]
    for name, parameter in model.named_parameters():
        if name in gradients:
            parameter.grad = gradients[name].to(parameter)
    return ''


def _saves(runner: Runner, ends_epoch: bool) -> bool:
    """Whether one of the run's hooks saves a checkpoint at this moment."""
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
