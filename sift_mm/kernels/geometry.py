"""Convolutions as walks: which inputs the taps of which outputs see.

The kernels know regular steps alone. Along one axis, output ``o`` of a
convolution of stride ``s``, dilation ``d`` and padding ``p`` sees input
``s o + d i - p`` through tap ``i``. Taken in steps of ``d / gcd(s, d)``,
outputs move over the input in steps of ``lcm(s, d)``, and so do the taps of
one *phase*, ``i mod s / gcd(s, d)``: each phase is a plane of its own, in
which taps are *shifts* by whole steps. The gradient of the input is the same
product with the sides exchanged.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

#: Rows of a patch at most, as in ``csrc/walk.h``.
MAX_ROWS = 7
#: Row lengths of a packed tile that are compiled, in vectors; a row of a
#: patch of two columns is two longer than the largest shift.
TILE_STRIDES = (2, 3, 4, 6, 8)
MAX_PHASES = 7
#: Of images, at most.
FEW_CHANNELS = 4
#: The stride that stands for runs of pixels in place of patches.
PIXELS = 0


@dataclass(frozen=True)
class AxisWalk:
    """Outputs of one axis in regular steps, and what they see.

    Args:
        out_first: First output.
        out_step: Step from one output to the next.
        count: Number of outputs.
        in_step: Step of the inputs that goes with it.
        in_first: For each phase the input at output 0 and shift 0.
        taps: For each tap of the kernel its (phase, shift), or None where
            these outputs do not see through it.
    """

    out_first: int
    out_step: int
    count: int
    in_step: int
    in_first: tuple[int, ...]
    taps: tuple[tuple[int, int] | None, ...]

    @property
    def seen(self) -> bool:
        """Whether any tap is left."""
        return any(self.taps)

    @property
    def reach(self) -> int:
        """The largest shift."""
        return max((tap[1] for tap in self.taps if tap), default=0)

    def numbers(self) -> list[int]:
        """The fields of ``Axis`` in ``csrc/walk.h``."""
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
        stride: Step of the outputs.
        before: Zeros added before the first input; may be negative.
        after: Zeros added behind the last.
        dilation: Step of the taps.
    """

    kernel: int
    stride: int
    before: int
    after: int
    dilation: int

    def out_size(self, in_size: int) -> int:
        """Number of outputs of ``in_size`` inputs."""
        reach = self.dilation * (self.kernel - 1) + 1
        return (in_size + self.before + self.after - reach) // self.stride + 1

    @property
    def phases(self) -> int:
        """Number of phases that taps fall into."""
        period = self.stride // math.gcd(self.stride, self.dilation)
        return min(period, self.kernel)

    def forward(self, in_size: int) -> Iterator[AxisWalk]:
        """Walk over all outputs, one class of steps after the other."""
        common = math.gcd(self.stride, self.dilation)
        period, step = self.stride // common, self.dilation // common
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
        """Walk over the gradients of all inputs, from those of outputs."""
        common = math.gcd(self.stride, self.dilation)
        step = self.dilation // common
        period = self.stride * step
        for first in range(min(period, in_size)):
            # The output that tap i brings to this input, where it is whole.
            sources = [
                divmod(first + self.before - tap * self.dilation, self.stride)
                for tap in range(self.kernel)
            ]
            lowest = min((s for s, rest in sources if not rest), default=0)
            yield AxisWalk(
                out_first=first,
                out_step=period,
                count=-(-(in_size - first) // period),
                in_step=step,
                in_first=(lowest,),
                taps=tuple(
                    None if rest else (0, (source - lowest) // step)
                    for source, rest in sources
                ),
            )


@dataclass(frozen=True)
class Geometry:
    """A convolution's two axes.

    Args:
        h: Down.
        w: Across.
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
        """Make it from a layer's pairs.

        Args:
            kernel: Height and width.
            stride: Down and across.
            padding: Zeros at the left, right, top and bottom, in the order
                of ``torch.nn.functional.pad``.
            dilation: Down and across.
        """
        left, right, top, bottom = padding
        # A single tap has no dilation; 1 spares a class of steps for each.
        down, across = (
            step if taps > 1 else 1
            for taps, step in zip(kernel, dilation, strict=True)
        )
        return cls(
            AxisGeometry(kernel[0], stride[0], top, bottom, down),
            AxisGeometry(kernel[1], stride[1], left, right, across),
        )

    @classmethod
    def from_numbers(cls, numbers: list[int]) -> 'Geometry':
        """Read what ``numbers`` wrote."""
        return cls(AxisGeometry(*numbers[:5]), AxisGeometry(*numbers[5:]))

    def numbers(self) -> list[int]:
        """As ten integers, for an operator's schema."""
        return [
            number
            for axis in (self.h, self.w)
            for number in (
                axis.kernel,
                axis.stride,
                axis.before,
                axis.after,
                axis.dilation,
            )
        ]

    @property
    def kernel(self) -> tuple[int, int]:
        """Height and width."""
        return self.h.kernel, self.w.kernel

    def out_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the output."""
        return self.h.out_size(height), self.w.out_size(width)

    @cached_property
    def pointwise(self) -> bool:
        """Whether every output sees the one input at its own place."""
        return all(
            (axis.kernel, axis.stride, axis.before, axis.after) == (1, 1, 0, 0)
            for axis in (self.h, self.w)
        )

    def why_not(self) -> str | None:
        """Say what the kernels do not do, or None."""
        for axis in (self.h, self.w):
            if axis.kernel > 7:
                return f'its kernel of {axis.kernel} is larger than 7'
        return None


def geometry_of(layer: nn.Module) -> Geometry:
    """The geometry of a convolution; a linear layer's is 1 x 1."""
    if not isinstance(layer, nn.Conv2d):
        return Geometry.of((1, 1))
    kernel, stride, padding, dilation = (
        pair(value)
        for value in (
            layer.kernel_size,
            layer.stride,
            # 'valid' is none; 'same' is replaced below.
            0 if isinstance(layer.padding, str) else layer.padding,
            layer.dilation,
        )
    )
    top, left = bottom, right = padding
    if layer.padding == 'same':
        down, across = (
            d * (k - 1) for k, d in zip(kernel, dilation, strict=True)
        )
        top, left = down // 2, across // 2
        bottom, right = down - top, across - left
    return Geometry.of(kernel, stride, (left, right, top, bottom), dilation)


def reads_images(layer: nn.Module) -> bool:
    """Whether a convolution reads so few channels that it is one of images.

    PyTorch's kernels multiply by 8 or 16 channels at a time, of which RGB
    fills a few; those here have pixels in their place, so that they are
    faster with a weight that has no zeros too.
    """
    return isinstance(layer, nn.Conv2d) and layer.in_channels <= FEW_CHANNELS


def pair(value: Any) -> tuple[int, int]:
    """Two numbers, also where a layer's attribute was set to one."""
    height, width = value if isinstance(value, (tuple, list)) else [value] * 2
    return height, width
