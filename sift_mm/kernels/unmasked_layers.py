"""Execution of batch norms and max-poolings beside masked layers.

Their inputs are as wide as those of the masked layers: the kernels save 5 to
6 % each in a training step of a wide ResNet-18.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .geometry import pair
from .masked_layers import why_dense
from .norm import batch_norm
from .patches import is_overridden
from .pooling import max_pool2d


class UnmaskedExecution:
    """Execution of the batch norms and max-poolings of a network.

    Attributes:
        sparse: True if any masked layer runs sparse. Otherwise PyTorch runs
            everything, so that results have the same bits as without masks.
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
        """Normalize by batch statistics, and update the running statistics.

        Returns:
            Output, or None if PyTorch has to run the call.
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
        """Return True if a max-pooling of an input runs on the kernel."""
        return (
            self.sparse
            and pair(pool.dilation) == (1, 1)
            and not (pool.ceil_mode or pool.return_indices)
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


class ExecutedMaxPool2d(nn.MaxPool2d):
    """Max-pooling that runs through an execution.

    Copies and pickles are plain poolings.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Pool on the kernel if the execution allows it."""
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
        else:  # TorchScript does not compile this branch.
            execution: Any = self.execution
            if not execution.pools(self, input):
                return super().forward(input)
            window = self.kernel_size, self.stride, self.padding
            return max_pool2d(input, *map(pair, window))

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Only protocol 0 allows another class in the result.
        reduced: Any = super().__reduce_ex__(0)
        make, (_, *rest), state = reduced
        state = {k: v for k, v in state.items() if k != 'execution'}
        return make, (nn.MaxPool2d, *rest), state


# Tools that print or count layers by name see a plain pooling.
ExecutedMaxPool2d.__name__ = nn.MaxPool2d.__name__
ExecutedMaxPool2d.__module__ = nn.MaxPool2d.__module__
