"""Where the nonzeros of a layer are, as the kernels read them.

A pattern belongs to a mask and a geometry, and changes only when the mask
does; values stay in the dense weight. It is a list of tensors, so that
operators, ``deepcopy`` and ``pickle`` can carry it.
"""

import ctypes
import zlib
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from itertools import islice

import torch
from torch import Tensor

from sift_mm.errors import UserError, UserTypeError

from . import build
from .build import pointer
from .geometry import MAX_ROWS, PIXELS, TILE_STRIDES, AxisWalk, Geometry

#: Taps and residues are those of any input that is large enough.
MANY = 1 << 20
#: Nonzeros of a row in a block: with fewer, loading and storing the row's sums
#: takes so long that a block which is larger than the L1 cache is faster.
FEW = 10


@dataclass(frozen=True)
class Layout:
    """How one product reads the nonzeros.

    Args:
        walk_h: A walk down, for its taps.
        walk_w: A walk across.
        by_channel: Whether rows are channels, as for the input's gradient.
        planes: Number of planes that are packed.
        block: Planes at a time.
        stride: Row length of the packed tile in vectors, or ``PIXELS``.
    """

    walk_h: AxisWalk
    walk_w: AxisWalk
    by_channel: bool
    planes: int
    block: int
    stride: int

    @property
    def tile_rows(self) -> int:
        """Rows of the packed tile."""
        return MAX_ROWS + self.walk_h.reach

    @property
    def blocks(self) -> int:
        """Number of blocks of planes."""
        return -(-self.planes // self.block)

    @property
    def phases(self) -> int:
        """Planes of a channel, or of a filter."""
        return len(self.walk_h.in_first) * len(self.walk_w.in_first)

    @cached_property
    def larger(self) -> 'Layout':
        """The same with blocks twice as large."""
        return replace(self, block=_even(self.planes, self.block * 2))

    def at(self, density: float) -> 'Layout':
        """This one or the larger, for a mask of some share of nonzeros."""
        taps = sum(t is not None for t in self.walk_h.taps)
        taps *= sum(t is not None for t in self.walk_w.taps)
        nonzeros = density * self.block * taps / self.phases
        return self.larger if nonzeros < FEW else self

    @cached_property
    def _digest(self) -> int:
        return zlib.crc32(repr(self).encode())

    def signature(self, rows: int) -> int:
        """A number, of 32 bits, for what was indexed in this way.

        It ends a pattern's row starts: the kernels would read out of bounds
        with the pattern of another layer, or of another CPU's blocks.

        Args:
            rows: Filters, or channels where rows are channels.
        """
        return zlib.crc32(str(rows).encode(), self._digest) - 2**31


class Reading(ctypes.Structure):
    """As in ``csrc/pattern.cpp``."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            'filters',
            'channels',
            'taps',
            'by_channel',
            'phases',
            'block',
            'tile',
            'threads',
        )
    ]


def _even(planes: int, block: int) -> int:
    """Blocks of like size, in place of a small last one."""
    return -(-planes // -(-planes // block))


def _layout(
    walk_h: AxisWalk,
    walk_w: AxisWalk,
    by_channel: bool,
    channels: int,
    pointwise: bool,
) -> Layout:
    stride = min(s for s in TILE_STRIDES if s >= 2 + walk_w.reach)
    planes = channels * len(walk_h.in_first) * len(walk_w.in_first)
    vectors = build.library().sift_tile_vectors()
    block = max(1, vectors // ((MAX_ROWS + walk_h.reach) * stride))
    return Layout(
        walk_h=walk_h,
        walk_w=walk_w,
        by_channel=by_channel,
        planes=planes,
        block=_even(planes, block),
        stride=PIXELS if pointwise else stride,
    )


@cache
def forward_layout(geometry: Geometry, channels: int) -> Layout:
    """Layout of the outputs, and of the gradient of the weights."""
    walk_h = next(geometry.h.forward(MANY))
    walk_w = next(geometry.w.forward(MANY))
    return _layout(walk_h, walk_w, False, channels, geometry.pointwise)


@cache
def backward_layouts(
    geometry: Geometry, filters: int
) -> tuple[tuple[Layout, ...], ...]:
    """Layouts of the input's gradient, by its place modulo the strides."""
    return tuple(
        tuple(
            _layout(walk_h, walk_w, True, filters, geometry.pointwise)
            for walk_w in islice(geometry.w.backward(MANY), geometry.w.stride)
        )
        for walk_h in islice(geometry.h.backward(MANY), geometry.h.stride)
    )


def make_pattern(
    mask: Tensor, geometry: Geometry, gradients: bool = True
) -> list[Tensor]:
    """Index the nonzeros of a mask.

    Args:
        mask: Bool of shape (filters, channels, height, width).
        geometry: Of the convolution.
        gradients: Whether to index them for the input's gradient too.

    Returns:
        For the forward product row starts (int32, and last a signature),
        positions in the packed tile (int16, read unsigned) and indices into
        the dense weight (int32). For the layouts of the input's gradient row
        starts of each, then positions of all in a row, and indices: masks
        share the weights out over layouts differently, and code that is
        compiled for one mask has to do for others.

    Raises:
        TypeError: Not bool on the CPU.
        ValueError: A mask of another kernel, or what the kernels do not do.
    """
    if mask.dtype != torch.bool or mask.device.type != 'cpu':
        raise UserTypeError(
            f'a pattern is made of bool on the CPU; the mask is {mask.dtype} '
            f'on {mask.device}'
        )
    kernel = geometry.kernel
    if mask.ndim != 4 or mask.shape[2:] != kernel:
        raise UserError(
            f'the mask has shape {tuple(mask.shape)}; expected (filters, '
            f'channels, {kernel[0]}, {kernel[1]})'
        )
    reason = geometry.why_not()
    if reason:
        raise UserError(f'a convolution is not executed sparsely: {reason}')
    filters, channels = mask.shape[:2]
    if mask.numel() >= 2**31:
        raise UserError(
            f'a weight of {mask.numel()} elements is too large for sparse '
            'execution, which counts to 2^31'
        )
    mask = mask.contiguous()
    layouts = [forward_layout(geometry, channels)]
    if gradients:
        backward = backward_layouts(geometry, filters)
        layouts += [layout for row in backward for layout in row]
    density = int(mask.count_nonzero()) / max(1, mask.numel())
    forward, *parts = [_index(mask, layout.at(density)) for layout in layouts]
    if not parts:
        return list(forward)
    rows, positions, places = zip(*parts, strict=True)
    return [*forward, *rows, torch.cat(positions), torch.cat(places)]


def _index(mask: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    filters, channels, height, width = mask.shape
    stride = layout.stride or 2
    empty = partial(torch.empty, device='cpu')  # Whatever the default is.
    reading = Reading(
        filters=filters,
        channels=channels,
        taps=height * width,
        by_channel=layout.by_channel,
        phases=layout.phases,
        block=layout.block,
        tile=layout.tile_rows * stride,
        threads=torch.get_num_threads(),
    )
    phases, offsets = [], []
    for down in layout.walk_h.taps:
        for across in layout.walk_w.taps:
            if down is None or across is None:
                phases.append(-1)
                offsets.append(0)
            else:
                count = len(layout.walk_w.in_first)
                phases.append(down[0] * count + across[0])
                offsets.append(down[1] * stride + across[1])
    taps = ctypes.c_int32 * reading.taps
    rows = channels if layout.by_channel else filters
    row = empty(layout.blocks * rows + 2, dtype=torch.int32)
    row[-1] = layout.signature(rows)
    index = build.library().sift_pattern
    index.restype = ctypes.c_int64
    common = (
        ctypes.byref(reading),
        pointer(mask),
        taps(*phases),
        taps(*offsets),
        ctypes.c_int64(layout.blocks),
        pointer(row),
    )
    count = index(*common, None, None)
    position = empty(count, dtype=torch.int16)
    places = empty(count, dtype=torch.int32)
    index(
        *common,
        pointer(position),
        pointer(places),
    )
    return row, position, places
