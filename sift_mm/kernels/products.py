"""A masked layer's three products, each sparse or dense.

Forward, gradient of the input and gradient of the weight are products of
their own, and which way is faster differs between them. What runs dense here
is what PyTorch would run for the layer.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .geometry import Geometry
from .ops import input_gradient, sparse_conv2d, weight_gradient

#: Names of the products, in the order of ``ways``.
PRODUCTS = ('forward', 'input gradient', 'weight gradient')
#: ``ways`` that leave nothing to the sparse operators.
DENSE = (False, False, False)


def _image(rows: Tensor) -> Tensor:
    """Rows of a linear layer as the pixels of one image."""
    return rows.t()[None, :, None] if rows.ndim == 2 else rows


def _like(image: Tensor, rows: Tensor) -> Tensor:
    """Undo ``_image`` where ``rows`` are rows."""
    return image[0, :, 0].t().contiguous() if rows.ndim == 2 else image


def _filters(weight: Tensor) -> Tensor:
    return weight[..., None, None] if weight.ndim == 2 else weight


def _convolution(
    geometry: Geometry,
) -> tuple[tuple[int, ...], tuple[Any, ...]]:
    """What is padded before a convolution, and its arguments in aten."""
    h, w = geometry.h, geometry.w
    around = (w.before, w.after, h.before, h.after)
    # Equal paddings are the convolution's own business.
    own = min(around) >= 0 and w.before == w.after and h.before == h.after
    padding = [h.before, w.before] if own else [0, 0]
    return (0,) * 4 if own else around, (
        [h.stride, w.stride],
        padding,
        [h.dilation, w.dilation],
        False,
        [0, 0],
        1,
    )


def _padded(x: Tensor, around: tuple[int, ...]) -> Tensor:
    return F.pad(x, around) if any(around) else x


def dense_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry
) -> Tensor:
    """What ``nn.Linear`` or ``nn.Conv2d`` does."""
    if x.ndim == 2:
        return F.linear(x, weight, bias)
    around, rest = _convolution(geometry)
    return torch.ops.aten.convolution(_padded(x, around), weight, bias, *rest)


def dense_gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    geometry: Geometry,
    of_input: bool,
    of_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of ``dense_forward``, those that are asked for."""
    if not (of_input or of_weight):
        return None, None
    if x.ndim == 2:
        return (
            grad @ weight if of_input else None,
            grad.t() @ x if of_weight else None,
        )
    around, rest = _convolution(geometry)
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad,
        _padded(x, around),
        weight,
        None,
        *rest,
        [of_input, of_weight, False],
    )
    if of_input:
        grad_x = _padded(grad_x, tuple(-size for size in around))
    return grad_x, grad_weight


def sparse_input_gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    pattern: Sequence[Tensor],
    geometry: Sequence[int],
) -> Tensor:
    """Gradient of the input, for layers of both kinds."""
    image = _image(x)
    out = input_gradient(
        _image(grad), _filters(weight), pattern, geometry, *image.shape[2:]
    )
    return _like(out, x)


def sparse_weight_gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    pattern: Sequence[Tensor],
    geometry: Sequence[int],
) -> Tensor:
    """Gradient of the weight at the pattern, for layers of both kinds."""
    out = weight_gradient(
        _image(grad), _image(x), _filters(weight), pattern, geometry
    )
    return out.view(weight.shape)


def sparse_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pattern: Sequence[Tensor],
    geometry: Sequence[int],
) -> Tensor:
    """The forward product, for layers of both kinds."""
    out = sparse_conv2d(_image(x), _filters(weight), bias, pattern, geometry)
    return _like(out, x)


def _is_zero_elsewhere(weight: Tensor, pattern: Sequence[Tensor]) -> bool:
    """Whether a weight has no nonzero outside its pattern."""
    inside = weight.flatten()[pattern[2]].count_nonzero()
    return bool(weight.count_nonzero() == inside)


@torch.library.custom_op('sift_mm::masked_layer', mutates_args=())
def masked_layer(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pattern: Sequence[Tensor],
    geometry: Sequence[int],
    ways: Sequence[bool],
    check: bool,
) -> Tensor:
    """A convolution or a linear layer with a masked weight.

    Args:
        x: Float32 of shape (images, channels, height, width), or (rows,
            features) for a linear layer.
        weight: Dense float32, of four or two dimensions.
        bias: Float32 of shape (filters,), or None.
        pattern: From ``make_pattern``; a linear layer is a 1 x 1 convolution.
        geometry: ``Geometry.numbers()``.
        ways: For each of ``PRODUCTS`` whether it runs sparse. A sparse
            gradient of the weight is zero outside the pattern.
        check: Whether to run a sparse forward product only if the weight is
            zero outside the pattern, which takes one look at all of it; else
            that is taken for granted.
    """
    if ways[0] and not (check and not _is_zero_elsewhere(weight, pattern)):
        return sparse_forward(x, weight, bias, pattern, geometry)
    shape = Geometry.from_numbers(list(geometry))
    return dense_forward(x, weight, bias, shape).contiguous()


@masked_layer.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pattern: Sequence[Tensor],
    geometry: Sequence[int],
    ways: Sequence[bool],
    check: bool,
) -> Tensor:
    if x.ndim == 2:
        return x.new_empty(x.shape[0], weight.shape[0])
    shape = Geometry.from_numbers(list(geometry))
    return x.new_empty(
        x.shape[0], weight.shape[0], *shape.out_size(*x.shape[2:])
    )


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, weight, bias, pattern, geometry, ways, _ = inputs
    ctx.save_for_backward(x, weight, *pattern)
    ctx.geometry = geometry
    ctx.ways = ways
    ctx.with_bias = bias is not None


def _backward(ctx: Any, grad: Tensor) -> tuple:
    x, weight, *pattern = ctx.saved_tensors
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    _, sparse_x, sparse_weight = ctx.ways
    grad_x, grad_weight = dense_gradients(
        grad,
        x,
        weight,
        Geometry.from_numbers(list(ctx.geometry)),
        needs_x and not sparse_x,
        needs_weight and not sparse_weight,
    )
    layer = x, weight, pattern, ctx.geometry
    if needs_x and sparse_x:
        grad_x = sparse_input_gradient(grad, *layer)
    if needs_weight and sparse_weight:
        grad_weight = sparse_weight_gradient(grad, *layer)
    grad_bias = None
    if ctx.with_bias and needs_bias:
        grad_bias = grad.sum(0 if x.ndim == 2 else (0, 2, 3))
    nothing = [None] * len(pattern)
    return grad_x, grad_weight, grad_bias, nothing, None, None, None


masked_layer.register_autograd(_backward, setup_context=_save)
