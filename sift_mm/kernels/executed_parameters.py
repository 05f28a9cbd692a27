"""Parameters whose convolutions and linear layers run on sparse kernels.

A masked weight becomes, in place, an :class:`ExecutedParameter`. PyTorch
passes every call of a function on it to ``__torch_function__``: ``conv2d``,
``linear`` and ``addmm`` (in the Conv1D of transformers) may run sparse, all
other calls run in PyTorch. No module changes, so hooks, subclasses, patched
forwards, parametrizations and code that reads ``layer.weight`` keep working.
Copies, pickles and state dicts hold plain parameters.

The parameter stays a dense tensor with zeros, as optimizers, checkpoints,
averages and data-parallel wrappers expect.
"""

import copy
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from .masked_layers import ADDMM, LINEAR, Call, Execution
from .operator import EAGER
from .unmasked_layers import ExecutedMaxPool2d, UnmaskedExecution


class ExecutedParameter(nn.Parameter):
    """Parameter whose layer runs through an execution.

    Attributes:
        execution (Execution | UnmaskedExecution): Execution of the layer;
            None in an object created by a call of this class.
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
        """Run the functions of masked layers through the execution."""
        kwargs = kwargs or {}
        if len(types) > 1 and not all(issubclass(cls, t) for t in types):
            # Another tensor subclass handles the call, with plain tensors.
            args, kwargs = tree_map(_alias, (args, kwargs))
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            out = None
            if func is F.conv2d:
                out = _conv2d(*args, **kwargs)
            elif func is F.linear:
                out = _linear(*args, **kwargs)
            elif func is torch.addmm and len(args) == 3 and not kwargs:
                out = _addmm(*args)
            elif func is F.batch_norm:
                out = _batch_norm(*args, **kwargs)
            # nn.Parameter(weight) requires the type of its argument back.
            # Dynamo can trace neither that nor frames.
            elif (
                func is Tensor.detach or func is Tensor.requires_grad_
            ) and not torch.compiler.is_compiling():
                if sys._getframe(1).f_code is _PARAMETER:
                    return _as_executed(func(*args, **kwargs))
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


EAGER.add(ExecutedParameter)
_PARAMETER = nn.Parameter.__new__.__code__


def _as_executed(value: Any) -> Any:
    """Return a tensor as an executed parameter without an execution."""
    if isinstance(value, ExecutedParameter):
        return value
    return Tensor._make_subclass(ExecutedParameter, value)


def _alias(value: Any) -> Any:
    if not isinstance(value, ExecutedParameter):
        return value
    with torch._C.DisableTorchFunctionSubclass():
        return value.view_as(value)


#: Plain classes that an execution can run, with their executed classes.
EXECUTED: dict[type, type] = {
    nn.Parameter: ExecutedParameter,
    nn.MaxPool2d: ExecutedMaxPool2d,
}


def attach(plain: Any, execution: Any) -> None:
    """Run a parameter's layer, or a max-pooling, through an execution.

    Args:
        plain (nn.Parameter | nn.MaxPool2d): Plain object, or one attached
            before.
        execution (Execution | UnmaskedExecution): Execution, which replaces
            an earlier one.
    """
    plain.execution = execution
    plain.__class__ = EXECUTED.get(type(plain), type(plain))


def detach(executed: Any) -> None:
    """Turn a parameter or max-pooling back into a plain one."""
    for plain, kind in EXECUTED.items():
        if type(executed) is kind:
            vars(executed).pop('execution', None)
            executed.__class__ = plain


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
    strided = input.layout is torch.strided
    if not (strided and input.numel() and input.ndim):
        execution.refuse('' if strided else f'for {input.layout} inputs')
        return None
    rows = input.reshape(-1, input.shape[-1])
    out = execution.run(rows, weight, bias, LINEAR)
    if out is None:
        return None
    return out.view(*input.shape[:-1], weight.shape[0])


def _addmm(bias: Any, input: Any, weight: Any) -> Tensor | None:
    execution = getattr(weight, 'execution', None)
    if not isinstance(execution, Execution) or input.ndim != 2:
        return None
    return execution.run(input, weight, bias, ADDMM)


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
