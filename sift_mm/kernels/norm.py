"""Batch normalisation of wide activations, as an operator of PyTorch."""

import ctypes
from typing import Any

import torch
from torch import Tensor, nn

from . import build
from .build import pointer
from .memory import empty_output


class Norm(ctypes.Structure):
    """As in ``csrc/norm.cpp``."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in ('images', 'channels', 'pixels', 'threads')
    ]


def _norm(x: Tensor) -> 'ctypes._CArgObject':
    images, channels, height, width = x.shape
    return ctypes.byref(
        Norm(images, channels, height * width, torch.get_num_threads())
    )


@torch.library.custom_op('sift_mm::batch_norm', mutates_args=())
def _batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    out = empty_output(*x.shape)
    mean, variance = torch.empty_like(weight), torch.empty_like(weight)
    build.library().sift_batch_norm(
        _norm(x),
        pointer(x),
        pointer(weight),
        pointer(bias),
        ctypes.c_double(eps),
        pointer(out),
        pointer(mean),
        pointer(variance),
    )
    return out, mean, variance


@_batch_norm.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    return out, torch.empty_like(weight), torch.empty_like(weight)


@torch.library.custom_op('sift_mm::batch_norm_grad', mutates_args=())
def _gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    variance: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    grad, x, weight = grad.contiguous(), x.contiguous(), weight.contiguous()
    out = empty_output(*x.shape)
    of_weight, of_bias = torch.empty_like(mean), torch.empty_like(mean)
    build.library().sift_batch_norm_gradient(
        _norm(x),
        pointer(grad),
        pointer(x),
        pointer(weight),
        ctypes.c_double(eps),
        pointer(mean),
        pointer(variance),
        pointer(out),
        pointer(of_weight),
        pointer(of_bias),
    )
    return out, of_weight, of_bias


@_gradient.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    variance: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    return out, torch.empty_like(mean), torch.empty_like(mean)


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    x, weight, _, ctx.eps = inputs
    _, mean, variance = output
    ctx.mark_non_differentiable(mean, variance)
    ctx.save_for_backward(x, weight, mean, variance)


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple:
    return (*_gradient(grad, *ctx.saved_tensors, ctx.eps), None)


_batch_norm.register_autograd(_backward, setup_context=_save)


def can_normalize(module: nn.Module) -> bool:
    """Whether a module is a batch norm of the kind that is done here."""
    return (
        isinstance(module, nn.BatchNorm2d)
        and type(module).forward is nn.BatchNorm2d.forward
        and module.affine
    )


def batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Normalise by the batch's own statistics, as in training.

    Args:
        x: Shape (images, channels, height, width).
        weight: A factor a channel.
        bias: Added, a number a channel.
        eps: Added to the variance.

    Returns:
        The normalised input, and of each channel the mean and the variance
        (biased, over images and pixels), which have no gradients; None where
        the kernel cannot do it: other types and devices, or one number a
        channel, which PyTorch refuses.
    """
    fits = (
        x.ndim == 4
        and all(
            t.dtype == torch.float32 and t.device.type == 'cpu'
            for t in (x, weight, bias)
        )
        and x.shape[1] == len(weight)
        and x.numel() > x.shape[1]
    )
    if not fits or build.why_unavailable():
        return None
    return _batch_norm(x, weight, bias, eps)
