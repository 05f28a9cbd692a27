"""The kernels as operators of PyTorch, with their gradients.

Every operator takes contiguous or other float32 tensors on the CPU, returns
a contiguous tensor, and reads ``torch.get_num_threads`` at each call. The
result of a forward pass and of the input's gradient is the same for every
number of threads, bit for bit; the weight's gradient is the same for a given
number.
"""

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import Any

import torch
from torch import Tensor

from sift_mm.errors import Mistake, MistakenType

from . import build
from .build import pointer
from .geometry import AxisWalk, Geometry
from .memory import empty_output
from .pattern import Layout, backward_layouts, forward_layout


class Sizes(ctypes.Structure):
    """As in ``csrc/walk.h``."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            'images',
            'channels',
            'in_h',
            'in_w',
            'filters',
            'out_h',
            'out_w',
            'tile_rows',
            'block',
            'threads',
        )
    ]


_Walk = ctypes.c_int64 * 24

#: Of row starts, positions and indices.
DTYPES = (torch.int32, torch.int16, torch.int32)


def _walk(h: AxisWalk, w: AxisWalk) -> ctypes.Array:
    return _Walk(*h.numbers(), *w.numbers())


@lru_cache(maxsize=4096)
def _forward_walks(
    geometry: Geometry, height: int, width: int
) -> list[ctypes.Array]:
    return [
        _walk(h, w)
        for h, w in product(
            geometry.h.forward(height), geometry.w.forward(width)
        )
    ]


@lru_cache(maxsize=4096)
def _backward_walks(
    geometry: Geometry, height: int, width: int
) -> list[tuple[int, int, ctypes.Array | None]]:
    """Row and column of the layout, and the walk; None where it sees none."""
    return [
        (
            h.out_first % geometry.h.stride,
            w.out_first % geometry.w.stride,
            _walk(h, w) if h.seen and w.seen else None,
        )
        for h, w in product(
            geometry.h.backward(height), geometry.w.backward(width)
        )
    ]


def _check(x: Tensor, what: str, *shape: int | None) -> Tensor:
    """Return it contiguous; None stands for any size."""
    if x.dtype != torch.float32 or x.device.type != 'cpu':
        raise MistakenType(
            f'sparse execution takes float32 on the CPU; the {what} is '
            f'{x.dtype} on {x.device}'
        )
    if x.ndim != len(shape) or any(
        wanted not in (None, size)
        for wanted, size in zip(shape, x.shape, strict=True)
    ):
        expected = ', '.join('any' if n is None else str(n) for n in shape)
        raise Mistake(
            f'the {what} has shape {tuple(x.shape)}; expected ({expected})'
        )
    return x.contiguous()


@lru_cache(maxsize=4096)
def _geometry(numbers: tuple[int, ...]) -> Geometry:
    """Read it, if it is one that the kernels know."""
    geometry = Geometry.from_numbers(list(numbers))
    reason = geometry.why_not()
    if reason:
        raise Mistake(f'a convolution is not executed sparsely: {reason}')
    return geometry


def _out_size(geometry: Geometry, height: int, width: int) -> tuple[int, int]:
    sizes = geometry.out_size(height, width)
    if min(sizes) < 1:
        raise Mistake(
            f'an input of {height} x {width} is smaller than the kernel: no '
            'output is left'
        )
    return sizes


def _nonzeros(
    found: Sequence[Tensor], usual: Layout, rows: int
) -> tuple[Layout, tuple[Tensor, Tensor, Tensor]]:
    """Take the tensors of a layout or its larger one, and say of which."""
    kinds = [(t.dtype, t.is_contiguous() and t.is_cpu) for t in found]
    if kinds == [(kind, True) for kind in DTYPES]:
        row, position, index = found
        for layout in (usual, usual.larger):
            end = [position.numel(), layout.signature(rows)]
            if (
                row.numel() == layout.blocks * rows + 2
                and row[-2:].tolist() == end
                and index.numel() == position.numel()
            ):
                return layout, (row, position, index)
    raise Mistake(
        'the pattern is not one that make_pattern made here for a weight of '
        'this shape and for this geometry'
    )


def _of_gradient(pattern: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """The tensors of each layout of the input's gradient."""
    rows, shared = pattern[3:-2], pattern[-2:]
    found, start = [], 0
    for row in rows:
        end = start + sum(row[-2:-1].tolist())
        found.append((row, *(tensor[start:end] for tensor in shared)))
        start = end
    return found


def _sizes(
    source: Tensor, target: Tensor, layout: Layout
) -> 'ctypes._CArgObject':
    return ctypes.byref(
        Sizes(
            *source.shape,
            *target.shape[1:],
            layout.tile_rows,
            layout.block,
            torch.get_num_threads(),
        )
    )


def _call(name: str, *arguments: object) -> None:
    status = getattr(build.library(), name)(*arguments)
    if status:
        raise MemoryError(
            'no memory for the packed tiles of a sparse convolution'
        )


def _gather(weight: Tensor, index: Tensor) -> Tensor:
    values = torch.empty(index.numel(), dtype=torch.float32)
    build.library().sift_gather(
        pointer(weight),
        pointer(index),
        ctypes.c_int64(index.numel()),
        ctypes.c_int64(torch.get_num_threads()),
        pointer(values),
    )
    return values


def _empty_output(x: Tensor, filters: int, geometry: Sequence[int]) -> Tensor:
    """Make it of the right shape, for tracing."""
    shape = Geometry.from_numbers(list(geometry))
    return x.new_empty(
        x.shape[0], filters, *shape.out_size(x.shape[2], x.shape[3])
    )


def _convolve(
    source: Tensor,
    out: Tensor,
    layout: Layout,
    walk: ctypes.Array,
    nonzeros: tuple[Tensor, Tensor, Tensor],
    values: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
) -> None:
    """Write the outputs of one walk."""
    _call(
        'sift_convolve',
        _sizes(source, out, layout),
        walk,
        ctypes.c_int64(layout.stride),
        pointer(source),
        pointer(nonzeros[0]),
        pointer(nonzeros[1]),
        pointer(values),
        pointer(bias),
        pointer(residual),
        ctypes.c_int64(relu),
        pointer(out),
    )


def _forward(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    nonzeros: tuple[Tensor, Tensor, Tensor],
    layout: Layout,
    geometry: Geometry,
    out: Tensor,
) -> Tensor:
    if bias is not None:
        bias = _check(bias, 'bias', out.shape[1])
    if residual is not None:
        residual = _check(residual, 'residual', *out.shape)
    if not out.numel():
        return out
    for walk in _forward_walks(geometry, x.shape[2], x.shape[3]):
        _convolve(x, out, layout, walk, nonzeros, values, bias, residual, relu)
    return out


@torch.library.custom_op('sift_mm::sparse_conv2d', mutates_args=())
def sparse_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pattern: Sequence[Tensor],
    geometry: Sequence[int],
) -> Tensor:
    """Convolve with the nonzeros of a dense weight.

    Args:
        x: Float32 of shape (images, channels, height, width).
        weight: Dense float32 of shape (filters, channels, h, w); only what
            the pattern names is read.
        bias: Float32 of shape (filters,), or None.
        pattern: From ``make_pattern``, of the same geometry.
        geometry: ``Geometry.numbers()``.

    Returns:
        Float32 of shape (images, filters, out height, out width).

    Raises:
        TypeError: Not float32 on the CPU.
        ValueError: Shapes that do not fit.
    """
    shape = _geometry(tuple(geometry))
    weight = _check(weight, 'weight', None, None, *shape.kernel)
    filters, channels = weight.shape[:2]
    x = _check(x, 'input', None, channels, None, None)
    layout, nonzeros = _nonzeros(
        pattern[:3], forward_layout(shape, channels), filters
    )
    size = _out_size(shape, x.shape[2], x.shape[3])
    out = empty_output(x.shape[0], filters, *size)
    values = _gather(weight, nonzeros[2])
    return _forward(x, values, bias, None, False, nonzeros, layout, shape, out)


@sparse_conv2d.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pattern: Sequence[Tensor],
    geometry: Sequence[int],
) -> Tensor:
    return _empty_output(x, weight.shape[0], geometry)


@torch.library.custom_op('sift_mm::sparse_conv2d_fused', mutates_args=())
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
        x: Float32 of shape (images, channels, height, width).
        values: The nonzeros, float32, in the order of ``pattern[2]``.
        bias: Float32 of shape (filters,), or None.
        residual: Added to the output, of its shape; or None.
        relu: Whether negative sums become zero.
        pattern: The forward part of ``make_pattern``.
        geometry: ``Geometry.numbers()``.
        filters: Number of filters.

    Returns:
        Float32 of shape (images, filters, out height, out width). It has no
        gradient.

    Raises:
        TypeError: Not float32 on the CPU.
        ValueError: A residual of another shape.
    """
    shape = _geometry(tuple(geometry))
    x = _check(x, 'input', None, None, None, None)
    layout, nonzeros = _nonzeros(
        pattern[:3], forward_layout(shape, x.shape[1]), filters
    )
    values = _check(values, 'values', nonzeros[2].numel())
    size = _out_size(shape, x.shape[2], x.shape[3])
    out = empty_output(x.shape[0], filters, *size)
    return _forward(
        x, values, bias, residual, relu, nonzeros, layout, shape, out
    )


@sparse_conv2d_fused.register_fake
def _(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    pattern: Sequence[Tensor],
    geometry: Sequence[int],
    filters: int,
) -> Tensor:
    return _empty_output(x, filters, geometry)


@torch.library.custom_op('sift_mm::sparse_conv2d_input_grad', mutates_args=())
def input_gradient(
    grad: Tensor,
    weight: Tensor,
    pattern: Sequence[Tensor],
    geometry: Sequence[int],
    height: int,
    width: int,
) -> Tensor:
    """The gradient of the input of ``sparse_conv2d``.

    Args:
        grad: Of the output.
        weight: As it was then, and so are pattern and geometry.
        pattern: From ``make_pattern``.
        geometry: ``Geometry.numbers()``.
        height: Of the input.
        width: Of the input.
    """
    shape = _geometry(tuple(geometry))
    weight = _check(weight, 'weight', None, None, *shape.kernel)
    filters, channels = weight.shape[:2]
    size = _out_size(shape, height, width)
    grad = _check(grad, 'gradient', None, filters, *size)
    out = empty_output(grad.shape[0], channels, height, width)
    walks = _backward_walks(shape, height, width)
    if not grad.numel() or any(walk is None for *_, walk in walks):
        out.zero_()
    if not grad.numel():
        return out
    layouts = backward_layouts(shape, filters)
    parts = _of_gradient(pattern)
    found: dict[int, tuple[Any, ...]] = {}
    for row, column, walk in walks:
        if walk is None:
            continue
        at = row * len(layouts[0]) + column
        if at not in found:
            part = parts[at] if at < len(parts) else ()
            layout, nonzeros = _nonzeros(part, layouts[row][column], channels)
            found[at] = layout, nonzeros, _gather(weight, nonzeros[2])
        layout, nonzeros, values = found[at]
        _convolve(grad, out, layout, walk, nonzeros, values)
    return out


@input_gradient.register_fake
def _(
    grad: Tensor,
    weight: Tensor,
    pattern: Sequence[Tensor],
    geometry: Sequence[int],
    height: int,
    width: int,
) -> Tensor:
    return grad.new_empty(grad.shape[0], weight.shape[1], height, width)


@torch.library.custom_op('sift_mm::sparse_conv2d_weight_grad', mutates_args=())
def weight_gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    pattern: Sequence[Tensor],
    geometry: Sequence[int],
) -> Tensor:
    """The gradient of the weight of ``sparse_conv2d``.

    Args:
        grad: Of the output.
        x: The input, as it was then, and so are the others.
        weight: Read for its shape.
        pattern: From ``make_pattern``.
        geometry: ``Geometry.numbers()``.

    Returns:
        Of the weight's shape, zero where the pattern has nothing.
    """
    shape = _geometry(tuple(geometry))
    weight = _check(weight, 'weight', None, None, *shape.kernel)
    filters, channels = weight.shape[:2]
    x = _check(x, 'input', None, channels, None, None)
    size = _out_size(shape, x.shape[2], x.shape[3])
    grad = _check(grad, 'gradient', x.shape[0], filters, *size)
    layout, (rows, positions, index) = _nonzeros(
        pattern[:3], forward_layout(shape, channels), filters
    )
    values = x.new_zeros(index.numel())
    if grad.numel():
        for walk in _forward_walks(shape, x.shape[2], x.shape[3]):
            _call(
                'sift_weight_gradient',
                _sizes(x, grad, layout),
                walk,
                ctypes.c_int64(layout.stride),
                pointer(x),
                pointer(grad),
                pointer(rows),
                pointer(positions),
                pointer(values),
            )
    out = empty_output(*weight.shape).zero_()
    build.library().sift_scatter(
        pointer(values),
        pointer(index),
        ctypes.c_int64(values.numel()),
        ctypes.c_int64(torch.get_num_threads()),
        pointer(out),
    )
    return out


@weight_gradient.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    pattern: Sequence[Tensor],
    geometry: Sequence[int],
) -> Tensor:
    return x.new_empty(weight.shape)


def _save(
    ctx: Any,
    inputs: tuple,
    output: Tensor,
) -> None:
    x, weight, bias, pattern, geometry = inputs
    ctx.save_for_backward(x, weight, *pattern)
    ctx.geometry = geometry
    ctx.with_bias = bias is not None


def _backward(ctx: Any, grad: Tensor) -> tuple:
    x, weight, *pattern = ctx.saved_tensors
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    grad_x = grad_weight = grad_bias = None
    if needs_x:
        grad_x = input_gradient(
            grad, weight, pattern, ctx.geometry, x.shape[2], x.shape[3]
        )
    if needs_weight:
        grad_weight = weight_gradient(grad, x, weight, pattern, ctx.geometry)
    if ctx.with_bias and needs_bias:
        grad_bias = grad.sum((0, 2, 3))
    return grad_x, grad_weight, grad_bias, [None] * len(pattern), None


sparse_conv2d.register_autograd(_backward, setup_context=_save)
