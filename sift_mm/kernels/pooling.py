"""Max-pooling of wide activations, as an operator of PyTorch."""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d as dense_max_pool2d

from .build import call, int64_fields, why_unavailable
from .memory_format import in_format_of, new
from .operator import operator


class Pool(ctypes.Structure):
    """Sizes of a call, as in ``csrc/pool.cpp``."""

    _fields_ = int64_fields(
        'planes in_h in_w out_h out_w kernel_h kernel_w stride_h stride_w top '
        'left threads'
    )


def _sizes(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], pad: Sequence[int]
) -> tuple[int, int]:
    height, width = (
        (x.shape[axis] + 2 * pad[i] - kernel[i]) // stride[i] + 1
        for i, axis in ((0, -2), (1, -1))
    )
    return height, width


def _pool(image: Tensor, out: Tensor, window: Sequence[int]) -> Pool:
    planes, threads = image.shape[0] * image.shape[1], torch.get_num_threads()
    return Pool(planes, *image.shape[2:], *out.shape[2:], *window, threads)


@operator('sift_mm::max_pool2d')
def _max_pool2d(
    x: Tensor, window: Sequence[int], with_winners: bool
) -> tuple[Tensor, Tensor]:
    x = x.contiguous()
    size = _sizes(x, window[:2], window[2:4], window[4:])
    out = new(*x.shape[:2], *size)
    winners = x.new_empty(
        out.shape if with_winners else (0,), dtype=torch.uint8
    )
    needed = winners if with_winners else None
    call('sift_max_pool', _pool(x, out, window), x, out, needed)
    return out, winners


@_max_pool2d.register_fake
def _(
    x: Tensor, window: Sequence[int], with_winners: bool
) -> tuple[Tensor, Tensor]:
    size = _sizes(x, window[:2], window[2:4], window[4:])
    out = x.new_empty(*x.shape[:2], *size)
    return out, x.new_empty(
        out.shape if with_winners else (0,), dtype=torch.uint8
    )


@operator('sift_mm::max_pool2d_grad')
def _gradient(
    grad: Tensor,
    winners: Tensor,
    window: Sequence[int],
    height: int,
    width: int,
) -> Tensor:
    grad = grad.contiguous()
    out = new(*grad.shape[:2], height, width)
    pool = _pool(out, grad, window)
    call('sift_max_pool_gradient', pool, grad, winners, out)
    return out


@_gradient.register_fake
def _(grad: Tensor, *rest: Any) -> Tensor:
    return grad.new_empty(*grad.shape[:2], *rest[-2:])


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, ctx.window, _ = inputs
    ctx.size = x.shape[2:]
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])


def _places(
    winners: Tensor, window: Sequence[int], size: Sequence[int]
) -> Tensor:
    """Return the flat positions of the maxima in their planes."""
    _, across, down_step, across_step, top, left = window
    winners = winners.long()
    down = (
        torch.arange(winners.shape[2], device='cpu')[:, None] * down_step - top
    )
    right = torch.arange(winners.shape[3], device='cpu') * across_step - left
    return (down + winners // across) * size[1] + right + winners % across


def _backward(ctx: Any, grad: Tensor, _: Any) -> tuple:
    (winners,) = ctx.saved_tensors
    if not torch.is_grad_enabled():
        return _gradient(grad, winners, ctx.window, *ctx.size), None, None
    # create_graph: scatter_add is differentiable, the kernel is not.
    places = _places(winners, ctx.window, ctx.size).flatten(2)
    planes = grad.new_zeros(*grad.shape[:2], ctx.size.numel())
    out = planes.scatter_add(2, places, grad.flatten(2))
    return out.view(*grad.shape[:2], *ctx.size), None, None


_max_pool2d.register_autograd(_backward, _save)


def max_pool2d(
    x: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int] = (0, 0),
) -> Tensor:
    """Pool with the same bits as ``torch.nn.functional.max_pool2d``.

    Other types and devices, and windows of more than 256 elements, run in
    PyTorch.

    Args:
        x: Shape (images, channels, height, width).
        kernel: Height and width of the window.
        stride: Vertical and horizontal stride.
        padding: Vertical and horizontal padding with minus infinity.

    Returns:
        Shape (images, channels, out height, out width).
    """
    fits = (
        x.ndim == 4
        and x.dtype == torch.float32
        and kernel[0] * kernel[1] <= 256
        and all(2 * p <= k for p, k in zip(padding, kernel, strict=True))
        and x.numel() > 0
        and min(_sizes(x, kernel, stride, padding)) > 0
    )
    if not fits or why_unavailable():
        return dense_max_pool2d(x, kernel, stride, padding)
    needs_grad = torch.is_grad_enabled() and x.requires_grad
    window = [*kernel, *stride, *padding]
    return in_format_of(_max_pool2d(x, window, needs_grad)[0], x)
