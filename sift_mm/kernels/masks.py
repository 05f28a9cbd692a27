"""Passes over a whole layer, for an update of its mask."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from . import build
from .build import pointer
from .convolution import new as empty_output


def _threads(n: int) -> int:
    """As many as PyTorch takes for n elements."""
    return torch.get_num_threads() if n > 1 << 15 else 1


@dataclass(frozen=True)
class Divided:
    """Scores, divided by a bracket.

    An eighth of a byte for each, and 8 bytes for each that is within.

    Args:
        above: A bit for each score that is above, uint8 of shape (n / 8,).
        higher: How many those are.
        places: Of the scores within, int32 of shape (m,), rising.
        values: The scores within, float32 of shape (m,).
    """

    above: Tensor
    higher: int
    places: np.ndarray
    values: np.ndarray

    def among(self, mask: Tensor, active: bool) -> tuple[int, np.ndarray]:
        """How many above are active in a mask, or are not; which within are.

        Args:
            mask: Bool of shape (n,), contiguous.
            active: Which of the two.

        Returns:
            The number, and bool of shape (m,).
        """
        within = np.empty(len(self.places), np.bool_)
        build.library().sift_among(
            self.places.ctypes,
            ctypes.c_int64(len(within)),
            ctypes.c_int32(active),
            ctypes.c_int64(_threads(len(within))),
            pointer(mask),
            within.ctypes,
        )
        return _above(self.above, mask, active, flip=False), within

    def only(self, within: np.ndarray) -> 'Divided':
        """Without some of those within, which are not needed."""
        places, values = self.places[within], self.values[within]
        return replace(self, places=places, values=values)

    def flip_(self, mask: Tensor, k: int, active: bool) -> None:
        """Flip the k highest of those active in a mask, or not, in place.

        Of equal scores the first. The k-th has to be within, and the others
        of these k within or above.

        Args:
            mask: Bool of shape (n,), contiguous.
            k: How many.
            active: Of which.
        """
        need = k - _above(self.above, mask, active, flip=True)
        build.library().sift_flip(
            self.places.ctypes,
            self.values.ctypes,
            ctypes.c_int64(len(self.places)),
            ctypes.c_int64(need),
            ctypes.c_int32(active),
            ctypes.c_int64(_threads(len(self.places))),
            pointer(mask),
        )


def can_divide(mask: Tensor) -> bool:
    """Whether :func:`divide` takes scores of a mask like this one."""
    return (
        mask.device.type == 'cpu'
        and len(mask) < 2**31
        and build.why_unavailable() is None
    )


def divide(
    values: Tensor,
    sign: int,
    mask: Tensor | None,
    active: bool,
    low: float,
    high: float,
) -> Divided:
    """Divide scores into those above ``high``, from ``low`` on, and below.

    Args:
        values: float32 of shape (n,), n below 2^31; NaN is below.
        sign: 0 where values are the scores; 1 and -1 where these are the
            values' magnitudes, times the sign.
        mask: Bool of shape (n,), contiguous, or None.
        active: Whether what is not active in the mask is left out, or what
            is.
        low: Lower end of the bracket, not above ``high``.
        high: Upper end.
    """
    n = len(values)
    values = values.contiguous()
    above = torch.empty(-(-n // 8), dtype=torch.uint8)
    # Room for all, of which what is written comes to be memory, or was.
    places = empty_output(n).view(torch.int32)
    numbers = empty_output(n)
    found = np.empty(2, np.int64)
    build.library().sift_divide(
        pointer(values),
        pointer(mask),
        ctypes.c_int32(active),
        ctypes.c_int64(n),
        # Of the sign's bit alone: off for a magnitude, and on again.
        ctypes.c_uint32(0x7FFFFFFF if sign else 0xFFFFFFFF),
        ctypes.c_uint32(0x80000000 if sign < 0 else 0),
        ctypes.c_float(low),
        ctypes.c_float(high),
        ctypes.c_int64(_threads(n)),
        pointer(above),
        pointer(places),
        pointer(numbers),
        found.ctypes,
    )
    m, higher = found.tolist()
    return Divided(
        above, higher, places[:m].numpy().copy(), numbers[:m].numpy().copy()
    )


def join(parts: Sequence[Divided]) -> Divided:
    """Make one of parts in a row, all but the last of 8 n scores."""
    starts = np.cumsum(
        [0, *(8 * len(part.above) for part in parts)], dtype=np.int32
    )
    return Divided(
        torch.cat([part.above for part in parts]),
        sum(part.higher for part in parts),
        np.concatenate(
            [p.places + at for p, at in zip(parts, starts, strict=False)]
        ),
        np.concatenate([part.values for part in parts]),
    )


def _above(above: Tensor, mask: Tensor, active: bool, flip: bool) -> int:
    run = build.library().sift_above
    run.restype = ctypes.c_int64
    return run(
        pointer(above),
        ctypes.c_int32(active),
        ctypes.c_int32(flip),
        ctypes.c_int64(len(mask)),
        ctypes.c_int64(_threads(len(mask))),
        pointer(mask),
    )


def meet_(mask: Tensor, other: Tensor) -> tuple[int, int]:
    """Leave in a mask, in place, what is in another too.

    Args:
        mask: Bool of shape (n,), contiguous.
        other: Another of these.

    Returns:
        How many are left, and how many the other one has.
    """
    run = build.library().sift_meet
    run.restype = ctypes.c_int64
    active = ctypes.c_int64()
    kept = run(
        pointer(other),
        ctypes.c_int64(len(mask)),
        ctypes.c_int64(_threads(len(mask))),
        pointer(mask),
        ctypes.byref(active),
    )
    return kept, active.value


def keep(numbers: Tensor, mask: Tensor) -> None:
    """Set to zero, in place, what lies outside a mask.

    Args:
        numbers: Of 2, 4 or 8 bytes each, shape (n,), contiguous.
        mask: Bool of shape (n,), contiguous.
    """
    build.library().sift_keep(
        pointer(mask),
        ctypes.c_int64(len(mask)),
        ctypes.c_int64(numbers.element_size()),
        ctypes.c_int64(_threads(len(mask))),
        pointer(numbers),
    )
