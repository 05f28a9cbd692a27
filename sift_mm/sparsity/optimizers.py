"""Slots of an optimizer, and a trial that it keeps weights within masks."""

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sift_mm.errors import UserTypeError
from sift_mm.sparsity.random import generator_for
from sift_mm.sparsity.selection import apply_masks_

# Adamax holds eps in place of 0, slightly more in bfloat16. That is harmless:
# the slot of a grown weight is set to 0, as in a new optimizer.
_HARMLESS = 1e-7
# Learning rate of the trial: a small one would round steps to zero.
_RATE = 0.1


def with_wrapped(optimizer: Optimizer) -> list[Optimizer]:
    """Return an optimizer and the optimizers in it, outermost first."""
    found = [optimizer]
    for each in found:
        inner = [v for v in vars(each).values() if isinstance(v, Optimizer)]
        found += [one for one in inner if all(one is not f for f in found)]
    return found


def slots_of(
    optimizer: Optimizer, parameter: nn.Parameter
) -> dict[str, Tensor]:
    """Return the slots of a parameter's shape, by name.

    The result must not be kept: load_state_dict replaces the tensors.
    """
    slots: dict[str, Tensor] = {}
    states = {id(o.state): o.state for o in with_wrapped(optimizer)}
    for depth, state in enumerate(states.values()):
        for name, slot in state.get(parameter, {}).items():
            if (
                isinstance(slot, Tensor)
                and slot.is_floating_point()
                and slot.shape == parameter.shape
            ):
                slots[f'{name}/{depth}' if name in slots else name] = slot
    return slots


def apply_mask_with_slots_(
    parameter: nn.Parameter, optimizer: Optimizer, mask: Tensor
) -> None:
    """Set a parameter and its slots to zero outside a mask, in place."""
    slots = slots_of(optimizer, parameter).values()
    tensors = [parameter.detach(), *slots]
    apply_masks_(tensors, [mask] * len(tensors))


def check_optimizer(
    optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]
) -> None:
    """Refuse an optimizer that moves weights outside masks.

    A new optimizer of the same class and options takes some steps and a mask
    update on small parameters. The run and PyTorch's random state stay
    untouched. For an optimizer that wraps others, the wrapped optimizers are
    tried if the trial is impossible. A check during the run would come too
    late: weights would have moved.

    Raises:
        TypeError: If weights outside the masks would move, their slots would
            not stay zero, a step computes its own gradients, or the optimizer
            cannot be tried.
    """
    kind = type(optimizer)
    closure = inspect.signature(kind.step).parameters.get('closure')
    if closure is not None and closure.default is closure.empty:
        raise UserTypeError(
            f'{kind.__name__} computes gradients within its steps, where they '
            'cannot be masked; mask training needs an optimizer that uses '
            'the gradients it is given, such as SGD or AdamW.'
        )
    reason = _try(optimizer, parameters)
    inner = with_wrapped(optimizer)[1:]
    if reason and not inner:
        raise UserTypeError(
            f'{kind.__name__} cannot be tried before the first step '
            f'({reason}), so it is unknown if it keeps weights outside the '
            'masks at zero; use another optimizer, such as SGD or AdamW.'
        )
    if reason:
        for each in inner:
            check_optimizer(each, parameters)


def _try(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> str:
    """Try a new optimizer of the same kind; return its error, or ''."""
    kind = type(optimizer)
    names = {id(parameter): name for name, parameter in parameters.items()}
    groups: list[dict[str, Any]] = []
    tried: dict[nn.Parameter, str] = {}
    for group in optimizer.param_groups:
        # One parameter for each shape, type and device.
        alike = {
            (_small(p.shape), p.dtype, p.device): names[id(p)]
            for p in group['params']
            if id(p) in names
        }
        stand_ins = {
            nn.Parameter(torch.empty(shape, dtype=dtype, device=device)): name
            for (shape, dtype, device), name in alike.items()
        }
        if stand_ins:
            groups.append({**_options(group), 'params': list(stand_ins)})
            tried |= stand_ins
    if not tried:
        return ''
    known = inspect.signature(kind).parameters
    defaults = _options(getattr(optimizer, 'defaults', {}))
    arguments = {k: v for k, v in defaults.items() if k in known}
    cuda = {p.device for p in tried if p.device.type == 'cuda'}
    with torch.random.fork_rng(list(cuda)):
        try:
            trial = kind(groups, **arguments)
            _train(trial, tried)
        except UserTypeError:
            raise
        except Exception as error:
            line = str(error).partition(chr(10))[0]
            return f'{type(error).__name__}: {line}'
    return ''


def _small(shape: torch.Size) -> tuple[int, ...]:
    """Return a smaller shape that still fills vector registers."""
    return tuple(
        min(side, 32 if dim < 2 else 3) for dim, side in enumerate(shape)
    )


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    options = {k: copy.deepcopy(v) for k, v in group.items() if k != 'params'}
    rate = options.get('lr')
    if isinstance(rate, Tensor):
        rate.fill_(_RATE)
    elif rate is not None:
        options['lr'] = _RATE
    return options


def _train(trial: Optimizer, names: Mapping[nn.Parameter, str]) -> None:
    generator = generator_for(0, 0, 'trial')

    def normal(parameter: Tensor) -> Tensor:
        return torch.randn(parameter.shape, generator=generator).to(parameter)

    masks: dict[nn.Parameter, Tensor] = {}
    for parameter in names:
        parameter.data.copy_(normal(parameter))
    for step in range(8):  # RAdam changes its rule at the sixth step.
        for parameter in names:
            if step % 4 == 0:
                # The first mask, and an update like the trainer's.
                new = normal(parameter) > 0
                kept = new & masks.get(parameter, new)
                apply_mask_with_slots_(parameter, trial, kept)
                masks[parameter] = new
            gradient = normal(parameter)
            parameter.grad = gradient.where(masks[parameter], 0)
        trial.step()
        for parameter, name in names.items():
            _check(trial, parameter, ~masks[parameter], name)


def _check(
    trial: Optimizer, parameter: nn.Parameter, outside: Tensor, name: str
) -> None:
    kind = f'{type(trial).__name__}, with the options and the type of {name!r}'
    if parameter.detach()[outside].any():
        raise UserTypeError(
            f'{kind}, moves weights outside the mask, where gradient and '
            'slots are zero, or makes NaN of them; mask training needs an '
            'optimizer that works weight by weight, such as SGD or AdamW, '
            'and float32 for most.'
        )
    for key, slot in slots_of(trial, parameter).items():
        if not (slot[outside].abs() <= _HARMLESS).all():
            raise UserTypeError(
                f'{kind}, does not keep its {key!r} at zero outside the mask, '
                'so that grown weights would not restart from zero; use '
                'another optimizer, such as SGD or AdamW, or leave out '
                'fused=True.'
            )
