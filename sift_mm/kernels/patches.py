"""Functions of PyTorch in whose place kernels run, and their overrides."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._device import DeviceContext

_KINDS = (
    nn.Conv2d,
    nn.Linear,
    nn.BatchNorm2d,
    nn.ReLU,
    nn.MaxPool2d,
    nn.Sequential,
)
_FUNCTIONS: list[tuple[Any, str]] = [
    *((k, n) for k in _KINDS for n in ('forward', '__call__', '_call_impl')),
    *((F, name) for name in ('conv2d', 'linear', 'batch_norm', 'relu')),
    (F, 'max_pool2d'),
    (nn.Conv2d, '_conv_forward'),
]


def _current() -> list[Any]:
    return [getattr(owner, name) for owner, name in _FUNCTIONS]


_ORIGINAL = _current()


def is_overridden() -> bool:
    """Return whether a patch or a mode of the user's replaces functions.

    A mode is a ``TorchFunctionMode``; a default device is none of them.
    """
    if torch.compiler.is_compiling():
        return False
    modes = (
        torch._C._get_function_stack_at(i)
        for i in range(torch._C._len_torch_function_stack())
    )
    other_modes = any(type(mode) is not DeviceContext for mode in modes)
    return other_modes or _current() != _ORIGINAL
