"""Batch norms and max-poolings beside masked layers.

Their inputs are as wide as the masked layers': in a training step of a wide
ResNet-18 the kernels for them save 5 to 6 % each.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sift_mm.kernels import (
    batch_norm,
    can_pool,
    is_overridden,
    max_pool2d,
    pair,
)
from sift_mm.sparsity.masked_layers import why_dense


class UnmaskedExecution:
    """How batch norms and max-poolings of a network are run.

    Attributes:
        sparse: Whether any masked layer runs sparse; else the network does
            what it does without an execution, bit for bit.
    """

    def __init__(self, sparse: bool) -> None:
        self.sparse = sparse

    def normalize(
        self,
        x: Tensor,
        mean: Tensor | None,
        variance: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor | None:
        """Normalise by the statistics of the batch, and follow them.

        Returns:
            The output; None if PyTorch is to run the call.
        """
        tensors = x, mean, variance, weight, bias
        if not self.sparse or bias is None or eps <= 0:
            return None
        if why_dense(*tensors) or _is_checkpointed():
            return None
        found = batch_norm(x, weight, bias, eps)
        if found is None:
            return None
        out, own_mean, own_variance = found
        count = x.numel() / x.shape[1]
        with torch.no_grad():
            if mean is not None:
                mean.lerp_(own_mean, momentum)
            if variance is not None:
                own_variance = own_variance * (count / (count - 1))
                variance.lerp_(own_variance, momentum)
        return out

    def pools(self, pool: nn.MaxPool2d, x: Tensor) -> bool:
        """Return whether a max-pooling of an input runs on the kernel."""
        return (
            self.sparse
            and can_pool(pool)
            and not why_dense(x)
            and not is_overridden()
        )


def _is_checkpointed() -> bool:
    """Return whether hooks take the tensors that are saved for backward.

    Those of a checkpoint end its second run once the last tensor is saved,
    which is before statistics are followed here, and behind it in PyTorch.
    """
    if torch.compiler.is_compiling():
        return False
    return bool(torch._C._autograd._top_saved_tensors_default_hooks(False))


class _ExecutedMaxPool2d(nn.MaxPool2d):
    """Class that a pooling has for the time being: it has no parameter.

    A copy, and what is unpickled, is a plain pooling.
    """

    def forward(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return F.max_pool2d(  # type: ignore[call-overload]
                input,
                self.kernel_size,
                self.stride,
                self.padding,
                self.dilation,
                self.ceil_mode,
                self.return_indices,
            )
        else:  # Nothing here is compiled into a script.
            execution: Any = self.execution
            if not execution.pools(self, input):
                return super().forward(input)
            window = self.kernel_size, self.stride, self.padding
            return max_pool2d(input, *map(pair, window))

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Of all protocols the first alone lets a class stand for another.
        reduced: Any = super().__reduce_ex__(0)
        make, (_, *rest), state = reduced
        state = {k: v for k, v in state.items() if k != 'execution'}
        return make, (nn.MaxPool2d, *rest), state


# Printed and counted as the class that it stands for.
_ExecutedMaxPool2d.__name__ = nn.MaxPool2d.__name__
_ExecutedMaxPool2d.__module__ = nn.MaxPool2d.__module__


def is_plain_pool(module: nn.Module) -> bool:
    """Return whether a module is PyTorch's own max-pooling, or attached."""
    return type(module) in (nn.MaxPool2d, _ExecutedMaxPool2d)


def attach_pool(pool: Any, execution: UnmaskedExecution) -> None:
    """Let a max-pooling run through an execution."""
    pool.execution = execution
    pool.__class__ = _ExecutedMaxPool2d


def detach_pool(pool: Any) -> None:
    """Make a max-pooling plain again."""
    if type(pool) is _ExecutedMaxPool2d:
        vars(pool).pop('execution', None)
        pool.__class__ = nn.MaxPool2d  # type: ignore[assignment]
