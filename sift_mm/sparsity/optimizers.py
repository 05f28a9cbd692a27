"""Whether an optimizer leaves alone what is outside the masks."""

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sift_mm.errors import MistakenType
from sift_mm.sparsity.random import generator_for
from sift_mm.sparsity.selection import keep_only_

# Adamax holds eps, in bfloat16 a bit more, where others hold 0. It does no
# harm: a grown weight's slot restarts at 0, as in a new optimizer.
_HARMLESS = 1e-7
# Of the trial: nothing is to be rounded away, whatever the run starts with.
_RATE = 0.1


def slots_of(
    optimizer: Optimizer, parameter: nn.Parameter
) -> dict[str, Tensor]:
    """The slots that hold a number for each weight of a parameter.

    Looked up afresh each time: load_state_dict replaces the tensors.
    """
    return {
        name: slot
        for name, slot in optimizer.state.get(parameter, {}).items()
        if isinstance(slot, Tensor)
        and slot.is_floating_point()
        and slot.shape == parameter.shape
    }


def keep_only_with_slots_(
    parameter: nn.Parameter, optimizer: Optimizer, mask: Tensor
) -> None:
    """Set a parameter and its slots to zero, in place, outside a mask."""
    slots = slots_of(optimizer, parameter).values()
    tensors = [parameter.detach(), *slots]
    keep_only_(tensors, [mask] * len(tensors))


def check_optimizer(
    optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]
) -> None:
    """Refuse an optimizer that would not stay within masks.

    A new one of its class and options takes some steps and a mask update on
    small parameters of its own. Nothing of the run is touched, nor is the
    global random state of PyTorch. An optimizer that cannot be made from its
    options, such as one that wraps another, passes.

    Raises:
        TypeError: If weights outside the masks would move, their slots would
            not stay zero, or steps read gradients that cannot be masked.
    """
    kind = type(optimizer)
    closure = inspect.signature(kind.step).parameters.get('closure')
    if closure is not None and closure.default is closure.empty:
        raise MistakenType(
            f'{kind.__name__} computes gradients within its steps, where they '
            'cannot be masked; mask training needs an optimizer that goes by '
            'the gradients it is given, such as SGD or AdamW.'
        )
    names = {id(parameter): name for name, parameter in parameters.items()}
    groups: list[dict[str, Any]] = []
    tried: dict[nn.Parameter, str] = {}
    for group in optimizer.param_groups:
        # A parameter that stands for all alike, by what makes them so.
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
    known = inspect.signature(kind).parameters
    arguments = {
        k: v for k, v in _options(optimizer.defaults).items() if k in known
    }
    cuda = {p.device for p in tried if p.device.type == 'cuda'}
    with torch.random.fork_rng(list(cuda)):
        try:
            trial = kind(groups, **arguments)
        except Exception:
            return
        _try(trial, tried)


def _small(shape: torch.Size) -> tuple[int, ...]:
    """A shape of the same kind, and enough for a vector unit's registers."""
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


def _try(trial: Optimizer, names: Mapping[nn.Parameter, str]) -> None:
    generator = generator_for(0, 0, 'trial')

    def normal(parameter: Tensor) -> Tensor:
        return torch.randn(parameter.shape, generator=generator).to(parameter)

    masks: dict[nn.Parameter, Tensor] = {}
    for parameter in names:
        parameter.data.copy_(normal(parameter))
    for step in range(8):  # RAdam has another rule from its sixth step on.
        for parameter in names:
            if step % 4 == 0:
                # The first mask, and an update as the trainer does it.
                new = normal(parameter) > 0
                kept = new & masks.get(parameter, new)
                keep_only_with_slots_(parameter, trial, kept)
                masks[parameter] = new
            gradient = normal(parameter)
            parameter.grad = gradient.where(masks[parameter], 0)
        try:
            trial.step()
        except Exception:
            return  # The run's steps say so too, or are looked at there.
        for parameter, name in names.items():
            _check(trial, parameter, ~masks[parameter], name)


def _check(
    trial: Optimizer, parameter: nn.Parameter, outside: Tensor, name: str
) -> None:
    kind = f'{type(trial).__name__}, with the options and the type of {name!r}'
    if parameter.detach()[outside].any():
        raise MistakenType(
            f'{kind}, moves weights outside the mask, where gradient and '
            'slots are zero, or makes NaN of them; mask training needs an '
            'optimizer that works weight by weight, such as SGD or AdamW, '
            'and float32 for most.'
        )
    for key, slot in slots_of(trial, parameter).items():
        if not (slot[outside].abs() <= _HARMLESS).all():
            raise MistakenType(
                f'{kind}, does not keep its {key!r} at zero outside the mask, '
                'where grown weights restart it from, so that they would '
                'train unlike all others; use another optimizer, such as SGD '
                'or AdamW, or leave out fused=True.'
            )
