"""Sparse convolutions and linear layers as operators of PyTorch.

A linear layer is a 1 x 1 convolution whose rows are the pixels of one image.
With a weight of shape (in, out), its forward pass is the input gradient of the
layer with the same matrix as (out, in), and the other way round.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from sift_mm.errors import UserError

from . import convolution
from .dense_products import dense_forward, dense_gradients
from .geometry import Geometry
from .memory_format import are_rows, in_order
from .operator import operator

#: Names of a layer's products, in the order of a ``choice``.
PRODUCTS = ('forward', 'input gradient', 'weight gradient')


@lru_cache(maxsize=4096)
def _geometry(numbers: tuple[int, ...]) -> Geometry:
    geometry = Geometry.from_numbers(list(numbers))
    reason = geometry.why_not()
    if reason:
        raise UserError(f'a convolution is not executed sparsely: {reason}')
    return geometry


def _image_of(rows: Tensor) -> Tensor:
    """View rows as the pixels of one image in NHWC, or return images."""
    if rows.ndim != 2:
        return rows
    return rows.contiguous().t()[None, :, None]


def _like_rows(image: Tensor, rows: Tensor) -> Tensor:
    """Undo ``_image_of`` for a new tensor, in place.

    PyTorch refuses to change a view in place that an operator returned.
    """
    if rows.ndim != 2:
        return image
    return image.squeeze_(2).squeeze_(0).t_().contiguous()


def _filters(weight: Tensor) -> Tensor:
    return weight[..., None, None] if weight.ndim == 2 else weight


def _new_output(x: Tensor, filters: int, numbers: Sequence[int]) -> Tensor:
    """Return an empty output of the shape and memory format of a real one."""
    if x.ndim == 2:
        return x.new_empty(x.shape[0], filters)
    geometry = Geometry.from_numbers(list(numbers))
    size = geometry.out_size(x.shape[2], x.shape[3])
    out = x.new_empty(x.shape[0], filters, *size)
    return in_order(out, are_rows(x, geometry))


def _is_zero_elsewhere(weight: Tensor, pattern: Sequence[Tensor]) -> bool:
    inside = weight.flatten()[pattern[2]].count_nonzero()
    return bool(weight.count_nonzero() == inside)


@operator('sift_mm::sparse_conv2d')
def sparse_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pattern: Sequence[Tensor],
    geometry: Sequence[int],
    choice: Sequence[bool] | None = None,
    check: bool = False,
    transposed: bool = False,
) -> Tensor:
    """Run a convolution or a linear layer, each product sparse or dense.

    Args:
        x: Float32, shape (images, channels, height, width), or (rows,
            features) for a linear layer.
        weight: Dense float32 of four or two dimensions.
        bias: Float32, shape (filters,), or None.
        pattern: Pattern of ``make_pattern``, for the same geometry.
        geometry: ``Geometry.numbers()``.
        choice: For each of ``PRODUCTS``, True to read the active weights
            only; None for all sparse. A sparse weight gradient is zero
            outside the pattern. Under ``create_graph`` all gradients are
            dense and differentiable.
        check: True to run the forward product dense if the weight has a
            nonzero outside the pattern.
        transposed: True for a linear layer whose weight, and the mask of its
            pattern, have the shape (in, out).

    Returns:
        Float32, shape (images, filters, out height, out width) or (rows,
        filters).

    Raises:
        TypeError: If a tensor is not float32 on the CPU.
        ValueError: If shapes or pattern do not fit.
    """
    shape = _geometry(tuple(geometry))
    is_sparse = choice is None or choice[0]
    if not is_sparse or (check and not _is_zero_elsewhere(weight, pattern)):
        out = dense_forward(x, weight, bias, shape, transposed)
        return in_order(out, are_rows(x, shape))
    layer = _filters(weight), pattern, shape
    if transposed:
        out = convolution.input_gradient(_image_of(x), *layer, 1, len(x), bias)
    else:
        out = convolution.forward(_image_of(x), layer[0], bias, *layer[1:])
    return _like_rows(out, x)


@sparse_conv2d.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pattern: Sequence[Tensor],
    geometry: Sequence[int],
    choice: Any = None,
    check: bool = False,
    transposed: bool = False,
) -> Tensor:
    return _new_output(x, weight.shape[int(transposed)], geometry)


@operator('sift_mm::sparse_conv2d_fused')
def sparse_conv2d_fused(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    pattern: Sequence[Tensor],
    geometry: Sequence[int],
    filters: int,
) -> Tensor:
    """Convolve with values in the pattern's order, for inference.

    Args:
        x: Float32, shape (images, channels, height, width), or (rows,
            features) for a linear layer.
        values: Active weights, float32, in the order of ``pattern[2]``.
        bias: Float32, shape (filters,), or None.
        residual: Tensor of the output's shape to add, or None.
        relu: True to apply a ReLU.
        pattern: Forward part of ``make_pattern``.
        geometry: ``Geometry.numbers()``.
        filters: Number of filters.

    Returns:
        Float32, shape (images, filters, out height, out width) or (rows,
        filters), without gradient.

    Raises:
        TypeError: If a tensor is not float32 on the CPU.
        ValueError: If shapes or pattern do not fit.
    """
    shape = _geometry(tuple(geometry))
    if residual is not None:
        residual = _image_of(residual)
    epilogue = convolution.Epilogue(bias, residual, relu)
    out = convolution.fused_forward(
        _image_of(x), values, epilogue, pattern, shape, filters
    )
    return _like_rows(out, x)


@sparse_conv2d_fused.register_fake
def _(x: Tensor, *rest: Any) -> Tensor:
    *_, geometry, filters = rest
    return _new_output(x, filters, geometry)


@operator('sift_mm::sparse_conv2d_input_grad')
def input_gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    pattern: Sequence[Tensor],
    geometry: Sequence[int],
    transposed: bool = False,
) -> Tensor:
    """Return the gradient of the input of ``sparse_conv2d``.

    Args:
        grad: Gradient of the output.
        x: Input; only its shape is read.
        weight: Weight of the forward pass.
        pattern: Pattern of ``make_pattern``.
        geometry: ``Geometry.numbers()``.
        transposed: True for a weight of shape (in, out).
    """
    if transposed:
        return sparse_conv2d.function(grad, weight, None, pattern, geometry)
    size = (1, len(x)) if x.ndim == 2 else x.shape[2:]
    out = convolution.input_gradient(
        _image_of(grad),
        _filters(weight),
        pattern,
        _geometry(tuple(geometry)),
        *size,
    )
    return _like_rows(out, x)


@input_gradient.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    pattern: Any,
    geometry: Any,
    transposed: bool = False,
) -> Tensor:
    out = grad.new_empty(x.shape)
    if x.ndim == 2:
        return out
    shape = Geometry.from_numbers(list(geometry))
    return in_order(out, are_rows(grad, shape))


@operator('sift_mm::sparse_conv2d_weight_grad')
def weight_gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    pattern: Sequence[Tensor],
    geometry: Sequence[int],
    transposed: bool = False,
) -> Tensor:
    """Return the gradient of the weight of ``sparse_conv2d``.

    Args:
        grad: Gradient of the output.
        x: Input of the forward pass.
        weight: Weight; only its shape is read.
        pattern: Pattern of ``make_pattern``.
        geometry: ``Geometry.numbers()``.
        transposed: True for a weight of shape (in, out).

    Returns:
        Gradient of the weight's shape, zero outside the pattern.
    """
    if transposed:
        grad, x = x, grad
    out = convolution.weight_gradient(
        _image_of(grad),
        _image_of(x),
        _filters(weight),
        pattern,
        _geometry(tuple(geometry)),
    )
    return out.view(weight.shape)


@weight_gradient.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return x.new_empty(weight.shape)


def _of_shape(tensor: Tensor) -> Tensor:
    """Return a tensor of one value that is read for its shape alone."""
    return tensor.new_zeros(()).expand(tensor.shape)


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, weight, bias, pattern, ctx.geometry, *rest = inputs
    ctx.choice = rest[0] if rest else None
    ctx.transposed = len(rest) > 2 and rest[2]
    needs_x, needs_weight = ctx.needs_input_grad[:2]
    # Code may change a tensor that no gradient reads, as in PyTorch.
    ctx.save_for_backward(
        x if needs_weight else _of_shape(x),
        weight if needs_x else _of_shape(weight),
        *pattern,
    )
    ctx.with_bias = bias is not None


def _backward(ctx: Any, grad: Tensor) -> tuple:
    x, weight, *pattern = ctx.saved_tensors
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    _, sparse_x, sparse_weight = ctx.choice or (True,) * len(PRODUCTS)
    if torch.is_grad_enabled():  # create_graph
        sparse_x = sparse_weight = False
    grad_x, grad_weight = dense_gradients(
        grad,
        x,
        weight,
        _geometry(tuple(ctx.geometry)),
        needs_x and not sparse_x,
        needs_weight and not sparse_weight,
        ctx.transposed,
    )
    layer = x, weight, pattern, ctx.geometry, ctx.transposed
    if needs_x and sparse_x:
        grad_x = input_gradient(grad, *layer)
    if needs_weight and sparse_weight:
        grad_weight = weight_gradient(grad, *layer)
    grad_bias = None
    if ctx.with_bias and needs_bias:
        grad_bias = grad.sum(0 if x.ndim == 2 else (0, 2, 3))
    # An argument left to its default has no place in the result.
    others = [None] * (len(ctx.needs_input_grad) - 4)
    return grad_x, grad_weight, grad_bias, [None] * len(pattern), *others


sparse_conv2d.register_autograd(_backward, _save)


# The formulas count the dense layer: count_flops weighs it by the masks.
@register_flop_formula(torch.ops.sift_mm.sparse_conv2d)
def _(x: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return 2 * prod(weight) * prod(out_shape) // max(1, out_shape[1])


@register_flop_formula(
    [
        torch.ops.sift_mm.sparse_conv2d_input_grad,
        torch.ops.sift_mm.sparse_conv2d_weight_grad,
    ]
)
def _(grad: Any, x: Any, weight: Any, *_: Any, **__: Any) -> int:
    return 2 * prod(weight) * prod(grad) // max(1, grad[1])


@register_flop_formula(torch.ops.sift_mm.sparse_conv2d_fused)
def _(x: Any, *rest: Any, out_shape: Any, **__: Any) -> int:
    *_, numbers, _ = rest
    taps = prod(Geometry.from_numbers(numbers).kernel)
    return 2 * prod(out_shape) * x[1] * taps
