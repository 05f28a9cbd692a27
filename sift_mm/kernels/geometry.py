"""Geometry of convolutions: walks over outputs in regular steps.

Along one axis, output ``o`` of a convolution with stride ``s``, dilation ``d``
and padding ``p`` reads input ``s o + d i - p`` through tap ``i``. The kernels
support regular steps only. Outputs in steps of ``d / gcd(s, d)`` read inputs
in steps of ``lcm(s, d)``, and so do the taps of one *phase*,
``i mod s / gcd(s, d)``: each phase is a plane, and its taps are *shifts* by
whole steps. A large dilation would give many walks of few outputs, far apart
in memory; each tap is a phase then, packed from neighbouring inputs, at the
cost of packing once per tap. The input gradient is the same product with
inputs and outputs exchanged.
"""

import math
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from functools import cached_property
from typing import Any

from torch import nn

#: Largest number of rows of a patch, as in ``csrc/walk.h``.
MAX_ROWS = 7
#: Compiled row lengths of a packed tile, in vectors. The row of a patch of two
#: columns needs the largest shift plus two.
TILE_STRIDES = (2, 3, 4, 6, 8)
MAX_PHASES = MAX_KERNEL = 7
MAX_STRIDE = 4
#: Largest number of input channels of an image.
FEW_CHANNELS = 4
#: Tile strides that select runs of pixels, or rows of features, in place of
#: patches.
PIXELS, ROWS = 0, -1
#: Largest input step that the packer loads as vectors. It gathers larger steps
#: one by one, which takes up to 1000 times as long as the dense product.
MOST_STEP = 2


@dataclass(frozen=True)
class AxisWalk:
    """Outputs of one axis in regular steps, and the inputs that they read.

    Args:
        out_first: First output.
        out_step: Step between outputs.
        count: Number of outputs.
        in_step: Step between the inputs of neighbouring outputs.
        in_first: Input at output 0 and shift 0, for each phase.
        taps: (phase, shift) of each tap; None if these outputs do not use it.
    """

    out_first: int
    out_step: int
    count: int
    in_step: int
    in_first: tuple[int, ...]
    taps: tuple[tuple[int, int] | None, ...]

    @property
    def seen(self) -> bool:
        """True if the outputs use any tap."""
        return any(self.taps)

    @property
    def reach(self) -> int:
        """Largest shift."""
        return max((tap[1] for tap in self.taps if tap), default=0)

    def numbers(self) -> list[int]:
        """Return the fields of ``Axis`` in ``csrc/walk.h``."""
        first = list(self.in_first)
        return [
            self.out_first,
            self.out_step,
            self.count,
            self.in_step,
            len(first),
            *first,
            *[0] * (MAX_PHASES - len(first)),
        ]


@dataclass(frozen=True)
class AxisGeometry:
    """One axis of a convolution.

    Args:
        kernel: Number of taps.
        stride: Step between outputs.
        before: Padding before the first input; may be negative.
        after: Padding after the last input.
        dilation: Step between taps.
    """

    kernel: int
    stride: int
    before: int
    after: int
    dilation: int

    def out_size(self, in_size: int) -> int:
        """Return the number of outputs for ``in_size`` inputs."""
        reach = self.dilation * (self.kernel - 1) + 1
        return (in_size + self.before + self.after - reach) // self.stride + 1

    @property
    def classes(self) -> int:
        """Number of walks over the outputs, with disjoint inputs."""
        return self.dilation // math.gcd(self.stride, self.dilation)

    @property
    def apart(self) -> bool:
        """True if each tap is a phase, in one walk over all outputs."""
        return self.classes > 1 and self.stride * self.classes > MOST_STEP

    @property
    def step(self) -> int:
        """Step between the outputs of a walk."""
        return 1 if self.apart else self.classes

    @property
    def period(self) -> int:
        """Step between the taps of a phase."""
        if self.apart:
            return self.kernel
        return self.stride // math.gcd(self.stride, self.dilation)

    @property
    def phases(self) -> int:
        """Number of phases."""
        return min(self.period, self.kernel)

    def forward(self, in_size: int) -> Iterator[AxisWalk]:
        """Yield the walks that cover all outputs."""
        period, step = self.period, self.step
        out_size = self.out_size(in_size)
        for first in range(min(step, out_size)):
            yield AxisWalk(
                out_first=first,
                out_step=step,
                count=-(-(out_size - first) // step),
                in_step=self.stride * step,
                in_first=tuple(
                    self.stride * first + phase * self.dilation - self.before
                    for phase in range(self.phases)
                ),
                taps=tuple(
                    (tap % period, tap // period) for tap in range(self.kernel)
                ),
            )

    def backward(self, in_size: int) -> Iterator[AxisWalk]:
        """Yield the walks that cover the gradients of all inputs."""
        period = self.stride * self.step
        for first in range(min(period, in_size)):
            # Output that reads this input through each tap; None between two.
            sources = [
                None if rest else source
                for source, rest in (
                    divmod(
                        first + self.before - tap * self.dilation, self.stride
                    )
                    for tap in range(self.kernel)
                )
            ]
            starts = sorted({s for s in sources if s is not None}) or [0]
            if not self.apart:
                starts = starts[:1]
            yield AxisWalk(
                out_first=first,
                out_step=period,
                count=-(-(in_size - first) // period),
                in_step=self.step,
                in_first=tuple(starts),
                taps=tuple(
                    None
                    if source is None
                    else (starts.index(source), 0)
                    if self.apart
                    else (0, (source - starts[0]) // self.step)
                    for source in sources
                ),
            )


@dataclass(frozen=True)
class Geometry:
    """Two axes of a convolution.

    Args:
        h: Vertical axis.
        w: Horizontal axis.
    """

    h: AxisGeometry
    w: AxisGeometry

    @classmethod
    def of(
        cls,
        kernel: tuple[int, int],
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int, int, int] = (0, 0, 0, 0),
        dilation: tuple[int, int] = (1, 1),
    ) -> 'Geometry':
        """Build a geometry from pairs, vertical and horizontal.

        Args:
            kernel: Height and width.
            stride: Strides.
            padding: Zeros at the left, right, top and bottom, in the order
                of ``torch.nn.functional.pad``.
            dilation: Dilations.
        """
        left, right, top, bottom = padding
        # The dilation of a single tap has no effect; 1 gives one walk.
        down, across = (
            step if taps > 1 else 1
            for taps, step in zip(kernel, dilation, strict=True)
        )
        return cls(
            AxisGeometry(kernel[0], stride[0], top, bottom, down),
            AxisGeometry(kernel[1], stride[1], left, right, across),
        )

    @classmethod
    def of_call(
        cls,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: Any,
        dilation: tuple[int, int],
    ) -> 'Geometry':
        """Build a geometry from the arguments of ``F.conv2d``.

        Args:
            kernel: Height and width.
            stride: Strides, vertical and horizontal.
            padding: Number of zeros or a pair of them, 'same' or 'valid'.
            dilation: Dilations, vertical and horizontal.
        """
        top, left = bottom, right = pair(
            0 if isinstance(padding, str) else padding
        )
        if padding == 'same':
            down, across = (
                d * (k - 1) for k, d in zip(kernel, dilation, strict=True)
            )
            top, left = down // 2, across // 2
            bottom, right = down - top, across - left
        around = left, right, top, bottom
        return cls.of(kernel, stride, around, dilation)

    @classmethod
    def from_numbers(cls, numbers: list[int]) -> 'Geometry':
        """Build a geometry from :meth:`numbers`."""
        return cls(AxisGeometry(*numbers[:5]), AxisGeometry(*numbers[5:]))

    def numbers(self) -> list[int]:
        """Return ten integers, for an operator's schema."""
        return [*astuple(self.h), *astuple(self.w)]

    @property
    def kernel(self) -> tuple[int, int]:
        """Height and width of the kernel."""
        return self.h.kernel, self.w.kernel

    def out_size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of the output."""
        return self.h.out_size(height), self.w.out_size(width)

    @cached_property
    def pointwise(self) -> bool:
        """True if every output reads one input, at its own position."""
        return all(
            (axis.kernel, axis.stride, axis.before, axis.after) == (1, 1, 0, 0)
            for axis in (self.h, self.w)
        )

    def why_not(self) -> str | None:
        """Return why the kernels cannot run this convolution, or None."""
        for axis in (self.h, self.w):
            if axis.kernel > MAX_KERNEL:
                return f'its kernel of {axis.kernel} is larger than 7'
            # Packing would take longer than the dense product.
            if axis.stride > MAX_STRIDE:
                return f'its stride of {axis.stride} is larger than 4'
        return None


def geometry_of(layer: nn.Module) -> Geometry:
    """Return the geometry of a convolution; a linear layer's is 1 x 1."""
    if not isinstance(layer, nn.Conv2d):
        return Geometry.of((1, 1))
    return Geometry.of_call(
        pair(layer.kernel_size),
        pair(layer.stride),
        layer.padding,
        pair(layer.dilation),
    )


def reads_images(layer: nn.Module) -> bool:
    """Return True for a convolution of images, with few input channels.

    PyTorch's kernels process 8 or 16 channels at a time, and RGB fills three
    of them. The sparse kernels process pixels instead, so that they are
    faster for a full weight too.
    """
    return isinstance(layer, nn.Conv2d) and layer.in_channels <= FEW_CHANNELS


def pair(value: Any) -> tuple[int, int]:
    """Return a pair of numbers from one number or a pair."""
    values = value if isinstance(value, (tuple, list)) else [value]
    height, width = values if len(values) == 2 else [*values] * 2
    return height, width
