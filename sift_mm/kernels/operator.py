"""Operators of PyTorch that eager code calls without the dispatcher.

A call of a custom operator takes up to 0.5 ms, forward and backward: as long
as the kernels of a small layer.
"""

from collections.abc import Callable
from functools import update_wrapper
from typing import Any

import torch
from torch import Tensor, nn

#: Types of arguments that eager calls take; others go to the dispatcher.
EAGER = {Tensor, nn.Parameter, list, tuple, int, float, bool, type(None)}


class Operator:
    """Custom operator whose eager calls run its function directly.

    Compiled code, traces, modes, transforms and tensor subclasses get the
    operator. Function and gradient are the same both ways.

    Args:
        name: Name with a namespace, also for profilers.
        function: Forward pass.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = name
        self.function = function
        self.registered = torch.library.custom_op(
            name, function, mutates_args=()
        )
        self.register_fake = self.registered.register_fake
        self.gradient: Any = None
        update_wrapper(self, function)

    def register_autograd(
        self, backward: Callable[..., tuple], save: Callable[..., None]
    ) -> None:
        """Set the backward pass, as ``torch.library.register_autograd``."""
        self.registered.register_autograd(backward, setup_context=save)

        def run_forward(ctx: Any, *inputs: Any) -> Any:
            output = self.function(*inputs)
            save(ctx, inputs, output)
            return output

        def run_backward(ctx: Any, *grads: Tensor) -> tuple:
            # A list of tensors has a list of gradients in operators.
            return tuple(
                None if isinstance(found, list) else found
                for found in backward(ctx, *grads)
            )

        passes = {'forward': run_forward, 'backward': run_backward}
        # Profilers show the name of the class.
        self.gradient = type(
            self.name,
            (torch.autograd.Function,),
            {key: staticmethod(each) for key, each in passes.items()},
        )

    def __call__(self, *args: Any) -> Any:
        """Run the function, or the operator where it is needed."""
        if torch.compiler.is_compiling() or not _is_eager(args):
            return self.registered(*args)
        if self.gradient is not None and torch.is_grad_enabled():
            return self.gradient.apply(*args)
        with torch._C._profiler._RecordFunctionFast(self.name):
            return self.function(*args)


def operator(name: str) -> Callable[[Callable[..., Any]], Operator]:
    """Return a decorator that makes an operator of a function."""
    return lambda function: Operator(name, function)


def _is_eager(args: tuple) -> bool:
    """Return True if nothing in PyTorch has to see the operator."""
    return (
        EAGER.issuperset(map(type, args))
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._are_functorch_transforms_active()
        and not torch.jit.is_tracing()
    )
