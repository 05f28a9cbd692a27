"""Products of a sparse convolution: calls of the compiled kernels.

Every function takes float32 tensors on the CPU in any memory order, returns a
contiguous tensor (in NHWC for ``are_rows``), and reads
``torch.get_num_threads`` at each call. Outputs and input gradients have the
same bits for every number of threads; weight gradients have the same bits for
one number of threads.

All functions raise UserTypeError for a tensor that is not float32 on the CPU,
and UserError for shapes or a pattern that do not fit. ``ops`` documents the
arguments.
"""

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from sift_mm.errors import UserError

from .build import call, int64_fields
from .geometry import ROWS, AxisWalk, Geometry
from .memory_format import are_rows, check, is_channels_last, new
from .pattern import Layout, backward_layouts, forward_layout

Nonzeros = tuple[Tensor, Tensor, Tensor]


class Sizes(ctypes.Structure):
    """Sizes of a call, as in ``csrc/walk.h``."""

    _fields_ = int64_fields(
        'images channels in_h in_w filters out_h out_w tile_rows block paired '
        'threads'
    )


class Epilogue(NamedTuple):
    """Bias and residual to add to the outputs, and a ReLU after them."""

    bias: Tensor | None = None
    residual: Tensor | None = None
    relu: bool = False


_Walk = ctypes.c_int64 * 24

#: Types of row starts, positions and indices.
DTYPES = (torch.int32, torch.int16, torch.int32)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pattern: Sequence[Tensor],
    geometry: Geometry,
) -> Tensor:
    """Convolve an input with the active weights."""
    x, weight, layout, nonzeros = _check_operands(x, weight, pattern, geometry)
    values = _gather(weight, nonzeros[2])
    return _forward(x, values, Epilogue(bias), nonzeros, layout, geometry)


def _check_operands(
    x: Tensor, weight: Tensor, pattern: Sequence[Tensor], geometry: Geometry
) -> tuple[Tensor, Tensor, Layout, Nonzeros]:
    """Return input and weight in order, with the layout of the nonzeros."""
    weight = check(weight, 'weight', None, None, *geometry.kernel)
    filters, channels = weight.shape[:2]
    rows = are_rows(x, geometry)
    x = check(x, 'input', None, channels, None, None, rows=rows)
    usual = forward_layout(geometry, channels)
    return x, weight, *_nonzeros(pattern[:3], usual, filters)


def fused_forward(
    x: Tensor,
    values: Tensor,
    epilogue: Epilogue,
    pattern: Sequence[Tensor],
    geometry: Geometry,
    filters: int,
) -> Tensor:
    """Convolve an input with gathered values, and apply an epilogue."""
    rows = are_rows(x, geometry)
    x = check(x, 'input', None, None, None, None, rows=rows)
    layout, nonzeros = _nonzeros(
        pattern[:3], forward_layout(geometry, x.shape[1]), filters
    )
    values = check(values, 'values', nonzeros[2].numel())
    return _forward(x, values, epilogue, nonzeros, layout, geometry)


def input_gradient(
    grad: Tensor,
    weight: Tensor,
    pattern: Sequence[Tensor],
    geometry: Geometry,
    height: int,
    width: int,
    bias: Tensor | None = None,
) -> Tensor:
    """Return the gradient of an input of the given height and width.

    The bias is for layers whose weight is (in, out). Their forward pass is
    this product.
    """
    weight = check(weight, 'weight', None, None, *geometry.kernel)
    filters, channels = weight.shape[:2]
    size = _out_size(geometry, height, width)
    order = are_rows(grad, geometry)
    grad = check(grad, 'gradient', None, filters, *size, rows=order)
    out = new(grad.shape[0], channels, height, width, rows=order)
    walks = _backward_walks(geometry, height, width)
    if not grad.numel() or any(walk is None for *_, walk in walks):
        out.zero_()
    if not grad.numel():
        return out
    layouts = backward_layouts(geometry, filters)
    parts = _split_gradient(pattern)
    if bias is not None:
        bias = check(bias, 'bias', channels)
    found: dict[int, tuple[Layout, Nonzeros, Tensor]] = {}
    for row, column, walk in walks:
        if walk is None:
            continue
        at = row * len(layouts[0]) + column
        if at not in found:
            part = parts[at] if at < len(parts) else ()
            layout, nonzeros = _nonzeros(part, layouts[row][column], channels)
            found[at] = layout, nonzeros, _gather(weight, nonzeros[2])
        layout, nonzeros, values = found[at]
        _convolve(grad, out, layout, walk, nonzeros, values, Epilogue(bias))
    return out


def weight_gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    pattern: Sequence[Tensor],
    geometry: Geometry,
) -> Tensor:
    """Return the gradient of the active weights, zero elsewhere."""
    x, weight, layout, nonzeros = _check_operands(x, weight, pattern, geometry)
    rows, positions, index = nonzeros
    size = _out_size(geometry, x.shape[2], x.shape[3])
    order = are_rows(x, geometry)
    shape = x.shape[0], weight.shape[0], *size
    grad = check(grad, 'gradient', *shape, rows=order)
    values = new(index.numel()).zero_()
    if grad.numel():
        for walk in _forward_walks(geometry, x.shape[2], x.shape[3]):
            _run(
                'sift_weight_gradient',
                _sizes(x, grad, layout),
                walk,
                ROWS if order else layout.stride,
                x,
                grad,
                rows,
                positions,
                values,
            )
    out = new(*weight.shape).zero_()
    threads = torch.get_num_threads()
    call('sift_scatter', values, index, values.numel(), threads, out)
    return out


def is_zero_outside(weight: Tensor, mask: Tensor) -> bool:
    """Return True if a weight has no nonzero outside its mask.

    Args:
        weight: Float32 on the CPU.
        mask: Bool on the CPU, of the weight's shape.
    """
    if weight.stride() != mask.stride() or not weight.is_contiguous():
        weight, mask = weight.contiguous(), mask.contiguous()
    threads = torch.get_num_threads()
    return not call(
        'sift_nonzeros_outside', weight, mask, weight.numel(), threads
    )


def _walk(h: AxisWalk, w: AxisWalk) -> ctypes.Array:
    return _Walk(*h.numbers(), *w.numbers())


@lru_cache(maxsize=4096)
def _forward_walks(
    geometry: Geometry, height: int, width: int
) -> list[ctypes.Array]:
    h, w = geometry.h.forward(height), geometry.w.forward(width)
    return [_walk(*axes) for axes in product(h, w)]


@lru_cache(maxsize=4096)
def _backward_walks(
    geometry: Geometry, height: int, width: int
) -> list[tuple[int, int, ctypes.Array | None]]:
    """Return row and column of the layout, and the walk (None if empty)."""
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


def _out_size(geometry: Geometry, height: int, width: int) -> tuple[int, int]:
    sizes = geometry.out_size(height, width)
    if min(sizes) < 1 and not geometry.pointwise:
        raise UserError(
            f'an input of {height} x {width} is smaller than the kernel: no '
            'output is left'
        )
    return sizes


def _nonzeros(
    found: Sequence[Tensor], usual: Layout, rows: int
) -> tuple[Layout, Nonzeros]:
    """Return the layout of a pattern's tensors, and the tensors.

    Raises:
        ValueError: If they have none of the variants of the usual layout.
    """
    kinds = [(t.dtype, t.is_contiguous() and t.is_cpu) for t in found]
    if kinds == [(kind, True) for kind in DTYPES]:
        row, position, index = found
        end = row[-2:].tolist()
        for layout in usual.variants:
            if (
                row.numel() == layout.blocks * rows + 2
                and end == [position.numel(), layout.signature(rows)]
                and index.numel() == position.numel()
            ):
                return layout, (row, position, index)
    raise UserError(
        'the pattern is not one that make_pattern made here for a weight of '
        'this shape and for this geometry'
    )


def _split_gradient(pattern: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """Split the pattern of the input gradient into its layouts."""
    rows, shared = pattern[3:-2], pattern[-2:]
    found, start = [], 0
    for row in rows:
        end = start + sum(row[-2:-1].tolist())
        found.append((row, *(tensor[start:end] for tensor in shared)))
        start = end
    return found


def _sizes(source: Tensor, target: Tensor, layout: Layout) -> Sizes:
    threads = torch.get_num_threads()
    return Sizes(
        *source.shape,
        *target.shape[1:],
        layout.tile_rows,
        layout.block,
        layout.paired,
        threads,
    )


def _run(name: str, *arguments: object) -> None:
    if call(name, *arguments):
        raise MemoryError(
            'no memory for the packed tiles of a sparse convolution'
        )


def _gather(weight: Tensor, index: Tensor) -> Tensor:
    count, threads = index.numel(), torch.get_num_threads()
    values = new(count)
    call('sift_gather', weight, index, count, threads, values)
    return values


def _convolve(
    source: Tensor,
    out: Tensor,
    layout: Layout,
    walk: ctypes.Array,
    nonzeros: Nonzeros,
    values: Tensor,
    epilogue: Epilogue = Epilogue(),  # noqa: B008, immutable
) -> None:
    """Compute the outputs of one walk."""
    _run(
        'sift_convolve',
        _sizes(source, out, layout),
        walk,
        ROWS if is_channels_last(source) else layout.stride,
        source,
        *nonzeros[:2],
        values,
        *epilogue,
        out,
    )


def _forward(
    x: Tensor,
    values: Tensor,
    epilogue: Epilogue,
    nonzeros: Nonzeros,
    layout: Layout,
    geometry: Geometry,
) -> Tensor:
    filters = (nonzeros[0].numel() - 2) // layout.blocks
    rows = are_rows(x, geometry)
    size = _out_size(geometry, *x.shape[2:])
    out = new(x.shape[0], filters, *size, rows=rows)
    bias, residual, relu = epilogue
    if bias is not None:
        bias = check(bias, 'bias', filters)
    if residual is not None:
        residual = check(residual, 'residual', *out.shape, rows=rows)
    epilogue = Epilogue(bias, residual, relu)
    if not out.numel():
        return out
    for walk in _forward_walks(geometry, x.shape[2], x.shape[3]):
        _convolve(x, out, layout, walk, nonzeros, values, epilogue)
    return out
