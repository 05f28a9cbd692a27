"""Batch normalisation in training, as an operator of PyTorch.

PyTorch reads an activation in NCHW three times, a whole batch at a time; here
all planes of a channel come from a cache the second time. The forward pass
takes 0.4 times as long, which is 3 to 4 % of a training step of a wide
ResNet-18.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from . import build
from .build import pointer
from .convolution import in_format_of, new


class Norm(ctypes.Structure):
    """Sizes of a call, as in ``csrc/norm.cpp``."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in ('images', 'channels', 'pixels', 'threads')
    ]


def _norm(x: Tensor) -> 'ctypes._CArgObject':
    images, channels, height, width = x.shape
    threads = torch.get_num_threads()
    return ctypes.byref(Norm(images, channels, height * width, threads))


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op('sift_mm::batch_norm', mutates_args=())
def _batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    mean, variance = torch.empty_like(weight), torch.empty_like(weight)
    out = new(*x.shape)
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
def _(x: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _like(x), torch.empty_like(weight), torch.empty_like(weight)


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
    out = new(*x.shape)
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
    grad: Tensor, x: Tensor, weight: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return _like(x), torch.empty_like(weight), torch.empty_like(weight)


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    x, weight, _, ctx.eps = inputs
    _, mean, variance = output
    ctx.mark_non_differentiable(mean, variance)
    ctx.save_for_backward(x, weight, mean, variance)


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple:
    x, weight, mean, variance = ctx.saved_tensors
    if not torch.is_grad_enabled():
        return *_gradient(grad, x, weight, mean, variance, ctx.eps), None
    # create_graph: PyTorch's can be differentiated again.
    inverse = (variance + ctx.eps).rsqrt()
    gradients = torch.ops.aten.native_batch_norm_backward(
        *(grad, x, weight, None, None, mean, inverse, True, ctx.eps),
        [True] * 3,
    )
    return *gradients, None


_batch_norm.register_autograd(_backward, setup_context=_save)


def batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Normalise by the statistics of the batch.

    Args:
        x: Shape (images, channels, height, width).
        weight: Scale of each channel.
        bias: Shift of each channel.
        eps: Added to the variance.

    Returns:
        The normalised input, and mean and variance (biased, over images and
        pixels) of each channel, which have no gradients; None where PyTorch
        has to do it: other types and devices, or one number a channel, which
        it refuses.
    """
    fits = (
        x.ndim == 4
        and all(
            t.dtype == torch.float32 and t.device.type == 'cpu'
            for t in (x, weight, bias)
        )
        and len(weight) == len(bias) == x.shape[1]
        and x.numel() > x.shape[1]
        and not build.why_unavailable()
    )
    if not fits:
        return None
    out, mean, variance = _batch_norm(x, weight, bias, eps)
    return in_format_of(out, x), mean, variance
