"""Patterns: positions of a layer's nonzeros, in the kernels' order.

A pattern depends on a mask and a geometry alone; the values stay in the dense
weight. It is a list of tensors, so that operators, ``deepcopy`` and ``pickle``
can carry it.
"""

import ctypes
import zlib
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from itertools import islice

import torch
from torch import Tensor

from sift_mm.errors import UserError, UserTypeError

from .build import call, int64_fields
from .geometry import MAX_ROWS, PIXELS, TILE_STRIDES, AxisWalk, Geometry

#: Input size for which walks are built: taps do not depend on a large size.
MANY = 1 << 20
#: Nonzeros per row and block. With fewer, loading and storing the sums takes
#: so long that a block twice the size of the L1 cache is faster.
FEW = 10


@dataclass(frozen=True)
class Layout:
    """Layout of the nonzeros for one product.

    Args:
        walk_h: Vertical walk; only its taps matter.
        walk_w: Horizontal walk.
        by_channel: True if rows are channels, as for the input gradient.
        planes: Number of planes to pack.
        block: Planes per block.
        stride: Row length of the packed tile in vectors, or ``PIXELS``.
        paired: True if rows 2 i and 2 i + 1 share their places, so that one
            load of the input serves both.
    """

    walk_h: AxisWalk
    walk_w: AxisWalk
    by_channel: bool
    planes: int
    block: int
    stride: int
    paired: bool = field(default=False, repr=False)

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
        """Number of planes per channel, or per filter."""
        return len(self.walk_h.in_first) * len(self.walk_w.in_first)

    @cached_property
    def larger(self) -> 'Layout':
        """Layout with blocks of twice the size."""
        return replace(self, block=_even(self.planes, self.block * 2))

    @cached_property
    def in_pairs(self) -> 'Layout':
        """Layout of a mask in which pairs of rows share their places."""
        return replace(self, paired=True)

    @cached_property
    def variants(self) -> tuple['Layout', ...]:
        """Layouts that a pattern may have: for any mask and density."""
        kinds = (self,) if self.by_channel else (self, self.in_pairs)
        return tuple(size for kind in kinds for size in (kind, kind.larger))

    def at(self, density: float) -> 'Layout':
        """Return the faster layout for a density: this or the larger."""
        taps = sum(t is not None for t in self.walk_h.taps)
        taps *= sum(t is not None for t in self.walk_w.taps)
        nonzeros = density * self.block * taps / self.phases
        return self.larger if nonzeros < FEW else self

    @cached_property
    def _digest(self) -> int:
        return zlib.crc32(repr(self).encode())

    def signature(self, rows: int) -> int:
        """Return a 32-bit checksum of the layout and its number of rows.

        The last row start of a pattern is its signature: with the pattern of
        another layer or CPU, the kernels would read out of bounds.

        Args:
            rows: Number of filters, or of channels if rows are channels.
        """
        count = f'{rows} in pairs' if self.paired else str(rows)
        return zlib.crc32(count.encode(), self._digest) - 2**31


class Reading(ctypes.Structure):
    """Sizes of a call, as in ``csrc/pattern.cpp``."""

    _fields_ = int64_fields(
        'filters channels taps by_channel phases block tile paired threads'
    )


def _even(planes: int, block: int) -> int:
    """Decrease a block size until all blocks have about the same size."""
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
    vectors = call('sift_tile_vectors')
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
    """Return the layout of the forward pass and the weight gradient."""
    walk_h = next(geometry.h.forward(MANY))
    walk_w = next(geometry.w.forward(MANY))
    return _layout(walk_h, walk_w, False, channels, geometry.pointwise)


@cache
def backward_layouts(
    geometry: Geometry, filters: int
) -> tuple[tuple[Layout, ...], ...]:
    """Return the layouts of the input gradient, by row and column phase."""
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
        mask: Bool, shape (filters, channels, height, width).
        geometry: Geometry of the convolution.
        gradients: True to index the nonzeros for the input gradient too.

    Returns:
        For the forward product: row starts (int32, the signature last),
        positions in the packed tile (int16, read unsigned) and indices into
        the dense weight (int32); the nonzeros of paired filters alternate.
        For the input gradient: row starts of each layout, then positions and
        indices of all layouts concatenated: a mask update moves nonzeros
        between layouts, and compiled code needs sizes that stay.

    Raises:
        TypeError: If the mask is not bool on the CPU.
        ValueError: If the mask has another kernel size, or the kernels do not
            support the geometry.
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
    usual = forward_layout(geometry, channels)
    # The input gradient sums over filters: a pair shares no load there.
    layouts = [usual.in_pairs if is_paired(mask) else usual]
    if gradients:
        backward = backward_layouts(geometry, filters)
        layouts += [layout for row in backward for layout in row]
    density = int(mask.count_nonzero()) / max(1, mask.numel())
    forward, *parts = [_index(mask, layout.at(density)) for layout in layouts]
    if not parts:
        return list(forward)
    rows, positions, places = zip(*parts, strict=True)
    return [*forward, *rows, torch.cat(positions), torch.cat(places)]


def is_paired(mask: Tensor) -> bool:
    """Return True if filters 2 i and 2 i + 1 share their active places.

    An odd last filter is by itself. ``Block`` with an even number of filters
    gives such masks.
    """
    pairs = len(mask) // 2 * 2
    return pairs > 0 and torch.equal(mask[:pairs:2], mask[1:pairs:2])


def _index(mask: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
    filters, channels, height, width = mask.shape
    stride = layout.stride or 2
    # The default device may be another one.
    empty = partial(torch.empty, device='cpu')
    reading = Reading(
        filters=filters,
        channels=channels,
        taps=height * width,
        by_channel=layout.by_channel,
        phases=layout.phases,
        block=layout.block,
        tile=layout.tile_rows * stride,
        paired=layout.paired,
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
    index = partial(
        call,
        'sift_pattern',
        reading,
        mask,
        taps(*phases),
        taps(*offsets),
        layout.blocks,
        row,
    )
    count = index(None, None)
    position = empty(count, dtype=torch.int16)
    places = empty(count, dtype=torch.int32)
    index(position, places)
    return row, position, places
