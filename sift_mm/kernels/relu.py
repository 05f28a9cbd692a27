"""ReLU of wide activations, whose gradients are written where others were."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .memory import SMALLEST, empty_output


class _Relu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool) -> Tensor:
        if inplace:
            out = x.relu_()
            ctx.mark_dirty(out)
        else:
            out = torch.clamp_min(x, 0, out=empty_output(*x.shape))
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (out,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward.grad_input(
            grads[0], out, 0, grad_input=empty_output(*out.shape)
        ), None


def can_rectify(module: nn.Module) -> bool:
    """Whether a module is a ReLU of the kind that is done here."""
    return (
        isinstance(module, nn.ReLU) and type(module).forward is nn.ReLU.forward
    )


def relu(x: Tensor, inplace: bool) -> Tensor:
    """Rectify as ``torch.nn.functional.relu`` does, equal bit for bit.

    Args:
        x: Of any shape.
        inplace: Whether to write over it.
    """
    fits = (
        type(x) is Tensor
        and x._base is None  # Writes over a view are autograd's business.
        and x.dtype == torch.float32
        and x.device.type == 'cpu'
        and x.is_contiguous()
        and 4 * x.numel() >= SMALLEST  # Others' memory is kept anyhow.
        and not torch.compiler.is_compiling()  # It fuses them with others.
    )
    return _Relu.apply(x, inplace) if fits else F.relu(x, inplace=inplace)
