"""Parameters whose convolutions and linear layers run on sparse kernels.

The parameter is what is recognised: a masked weight becomes, in place, a
:class:`ExecutedParameter`, to which PyTorch hands every call of a function
that takes it. The library's own ``conv2d`` and ``linear``, called with the
parameter itself as the weight, may run sparse; all other calls, and all other
weights, are PyTorch's. No module is changed: hooks, subclasses, patched
forwards, parametrisations and owners that read ``layer.weight`` do what they
did. Copies, pickles and state dicts hold plain parameters.

The dense tensor with its zeros stays the parameter: optimizers, checkpoints,
averages and data-parallel wrappers see nothing of this.
"""

import copy
import sys
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from sift_mm.sparsity.masked_layers import LINEAR, Call, Execution
from sift_mm.sparsity.unmasked_layers import UnmaskedExecution


class ExecutedParameter(nn.Parameter):
    """Parameter whose layer runs through an execution, until it is detached.

    Attributes:
        execution (Execution | UnmaskedExecution): Execution of its layer;
            None in an object made by calling this class.
    """

    execution: Any = None

    @classmethod
    def __torch_function__(
        cls,
        func: Any,
        types: Any,
        args: Any = (),
        kwargs: Any = None,
    ) -> Any:
        """Run a call sparse if it is one of those above, else as ever."""
        kwargs = kwargs or {}
        if not all(issubclass(cls, kind) for kind in types):
            # Another subclass decides, on a plain tensor.
            args, kwargs = tree_map(_alias, (args, kwargs))
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            out = None
            if func is F.conv2d:
                out = _conv2d(*args, **kwargs)
            elif func is F.linear:
                out = _linear(*args, **kwargs)
            elif func is F.batch_norm:
                out = _batch_norm(*args, **kwargs)
            elif func is Tensor.detach and _makes_parameter(sys._getframe(1)):
                out = Tensor._make_subclass(cls, args[0])
            return func(*args, **kwargs) if out is None else out

    def plain(self) -> nn.Parameter:
        """Return a plain parameter that shares the tensor."""
        plain = nn.Parameter(self.data, self.requires_grad)
        state = {k: v for k, v in vars(self).items() if k != 'execution'}
        vars(plain).update(state)
        return plain

    def __deepcopy__(self, memo: Any) -> Any:
        if id(self) not in memo:
            memo[id(self)] = copy.deepcopy(self.plain(), memo)
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.plain().__reduce_ex__(protocol)


def _makes_parameter(frame: FrameType) -> bool:
    """Return whether ``nn.Parameter(...)`` calls, which insists on a class."""
    return frame.f_code is nn.Parameter.__new__.__code__


def _alias(value: Any) -> Any:
    if not isinstance(value, ExecutedParameter):
        return value
    with torch._C.DisableTorchFunctionSubclass():
        return value.view_as(value)


def attach(parameter: Any, execution: Any) -> None:
    """Let a parameter's layer run through an execution.

    Args:
        parameter (nn.Parameter): Of this very class, or attached before.
        execution (Execution | UnmaskedExecution): In place of an earlier one.
    """
    parameter.execution = execution
    parameter.__class__ = ExecutedParameter


def detach(parameter: Any) -> None:
    """Make a parameter plain again."""
    if isinstance(parameter, ExecutedParameter):
        parameter.__class__ = nn.Parameter  # type: ignore[assignment]
        vars(parameter).pop('execution', None)


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    execution = getattr(weight, 'execution', None)
    if not isinstance(execution, Execution) or weight.ndim != 4:
        return None
    if groups != 1 or input.ndim != 4:
        execution.refuse('grouped' if groups != 1 else 'without a batch')
        return None
    call: Call = (stride, padding, dilation)
    if not all(isinstance(value, (int, str, tuple)) for value in call):
        call = tuple(
            tuple(value) if isinstance(value, list) else value
            for value in call
        )
    return execution.run(input, weight, bias, call)


def _linear(
    input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor | None:
    execution = getattr(weight, 'execution', None)
    if not isinstance(execution, Execution) or weight.ndim != 2:
        return None
    if not input.numel() or not input.ndim:
        execution.refuse('')
        return None
    rows = input.reshape(-1, input.shape[-1])
    out = execution.run(rows, weight, bias, LINEAR)
    if out is None:
        return None
    return out.view(*input.shape[:-1], weight.shape[0])


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    execution = getattr(weight, 'execution', None)
    if not training or not isinstance(execution, UnmaskedExecution):
        return None
    assert weight is not None
    statistics = running_mean, running_var
    return execution.normalize(input, *statistics, weight, bias, momentum, eps)
