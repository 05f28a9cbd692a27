"""Convolutions as walks: which inputs the taps of which outputs see.

The kernels know regular steps alone. Along one axis, output ``o`` of a
convolution of stride ``s``, dilation ``d`` and padding ``p`` sees input
``s o + d i - p`` through tap ``i``. Taken in steps of ``d / gcd(s, d)``,
outputs move over the input in steps of ``lcm(s, d)``, and so do the taps of
one *phase*, ``i mod s / gcd(s, d)``: each phase is a plane of its own, in
which taps are *shifts* by whole steps. Large dilations have many such classes
of few outputs each, far apart in memory: there each tap is a phase, which is
packed as often as there are taps, from neighbouring inputs. The gradient of
the input is the same product with the sides exchanged.
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
MAX_PHASES = MAX_KERNEL = 7
MAX_STRIDE = 4
#: Of images, at most.
FEW_CHANNELS = 4
#: The stride that stands for runs of pixels in place of patches.
PIXELS = 0
#: Steps from input to input that the packer loads as vectors; at larger ones
#: it gathers one by one, which takes up to 1000 times as long as dense.
MOST_STEP = 2


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
    def classes(self) -> int:
        """Number of classes of outputs whose inputs do not mix."""
        return self.dilation // math.gcd(self.stride, self.dilation)

    @property
    def apart(self) -> bool:
        """Whether each tap is a phase of its own, for all outputs."""
        return self.classes > 1 and self.stride * self.classes > MOST_STEP

    @property
    def step(self) -> int:
        """Step from one output to the next of a walk."""
        return 1 if self.apart else self.classes

    @property
    def period(self) -> int:
        """Step from one tap to the next of a phase."""
        if self.apart:
            return self.kernel
        return self.stride // math.gcd(self.stride, self.dilation)

    @property
    def phases(self) -> int:
        """Number of phases that taps fall into."""
        return min(self.period, self.kernel)

    def forward(self, in_size: int) -> Iterator[AxisWalk]:
        """Walk over all outputs, one class of steps after the other."""
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
        """Walk over the gradients of all inputs, from those of outputs."""
        period = self.stride * self.step
        for first in range(min(period, in_size)):
            # The output that tap i brings to this input, where it is whole.
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
    def of_call(
        cls,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: Any,
        dilation: tuple[int, int],
    ) -> 'Geometry':
        """Make it from the arguments of ``torch.nn.functional.conv2d``.

        Args:
            kernel: Height and width.
            stride: Down and across.
            padding: Zeros down and across, or their number for both, or
                'same', or 'valid'.
            dilation: Down and across.
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
            if axis.kernel > MAX_KERNEL:
                return f'its kernel of {axis.kernel} is larger than 7'
            # Packing then takes longer than the dense product.
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
    """Whether a convolution reads so few channels that it is one of images.

    PyTorch's kernels multiply by 8 or 16 channels at a time, of which RGB
    fills a few; those here have pixels in their place, so that they are
    faster with a weight that has no zeros too.
    """
    return isinstance(layer, nn.Conv2d) and layer.in_channels <= FEW_CHANNELS


def pair(value: Any) -> tuple[int, int]:
    """Return two numbers, of one or two."""
    values = value if isinstance(value, (tuple, list)) else [value]
    height, width = values if len(values) == 2 else [*values] * 2
    return height, width
