"""Batch normalisation of wide activations, as an operator of PyTorch."""

import ctypes
from typing import Any

import torch
from torch import Tensor, nn

from . import build
from .build import pointer
from .memory import SMALLEST, empty_output


class Norm(ctypes.Structure):
    """As in ``csrc/norm.cpp``."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in ('images', 'channels', 'pixels', 'frozen', 'threads')
    ]


def _norm(x: Tensor, frozen: bool) -> 'ctypes._CArgObject':
    images, channels, height, width = x.shape
    threads = torch.get_num_threads()
    return ctypes.byref(
        Norm(images, channels, height * width, frozen, threads)
    )


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _normalize(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    eps: float,
    frozen: bool,
) -> Tensor:
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    out = empty_output(*x.shape)
    build.library().sift_batch_norm(
        _norm(x, frozen),
        pointer(x),
        pointer(weight),
        pointer(bias),
        ctypes.c_double(eps),
        pointer(out),
        pointer(mean),
        pointer(variance),
    )
    return out


@torch.library.custom_op('sift_mm::batch_norm', mutates_args=())
def _batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    mean, variance = torch.empty_like(weight), torch.empty_like(weight)
    out = _normalize(x, weight, bias, mean, variance, eps, False)
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
    frozen: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    grad, x, weight = grad.contiguous(), x.contiguous(), weight.contiguous()
    out = empty_output(*x.shape)
    of_weight, of_bias = torch.empty_like(mean), torch.empty_like(mean)
    build.library().sift_batch_norm_gradient(
        _norm(x, frozen),
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
    return (*_gradient(grad, *ctx.saved_tensors, ctx.eps, False), None)


_batch_norm.register_autograd(_backward, setup_context=_save)


@torch.library.custom_op('sift_mm::frozen_batch_norm', mutates_args=())
def _frozen_batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    eps: float,
) -> Tensor:
    return _normalize(x, weight, bias, mean, variance, eps, True)


@_frozen_batch_norm.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return _like(x)


def _save_frozen(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, weight, _, mean, variance, ctx.eps = inputs
    ctx.save_for_backward(x, weight, mean, variance)


def _frozen_backward(ctx: Any, grad: Tensor) -> tuple:
    found = _gradient(grad, *ctx.saved_tensors, ctx.eps, True)
    return (*found, None, None, None)


_frozen_batch_norm.register_autograd(
    _frozen_backward, setup_context=_save_frozen
)


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
    if not _fits(x, weight, bias) or x.numel() == x.shape[1]:
        return None
    return _batch_norm(x, weight, bias, eps)


def frozen_batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    eps: float,
) -> Tensor | None:
    """Normalise by given statistics, as where norms are frozen in training.

    Args:
        x: Shape (images, channels, height, width).
        weight: A factor a channel.
        bias: Added, a number a channel.
        mean: Of each channel.
        variance: Of each channel.
        eps: Added to the variance.

    Returns:
        The normalised input; None where the kernel cannot do it, or where it
        is so small that nothing is gained.
    """
    large = 4 * x.numel() >= SMALLEST
    if not large or not _fits(x, weight, bias, mean, variance):
        return None
    return _frozen_batch_norm(x, weight, bias, mean, variance, eps)


def _fits(x: Tensor, *channels: Tensor) -> bool:
    return (
        x.ndim == 4
        and all(
            t.dtype == torch.float32 and t.device.type == 'cpu'
            for t in (x, *channels)
        )
        and all(len(t) == x.shape[1] for t in channels)
        and x.numel() > 0
        and not build.why_unavailable()
    )
