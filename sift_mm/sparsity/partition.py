"""Which positions score highest: exactly k of them, in linear time.

After Floyd and Rivest (1975): a sample of the scores brackets the k-th
highest. One pass finds what lies above the bracket, which is chosen, and the
few positions within it, among which an exact selection chooses the rest.
Among equal scores the lower position comes first; NaN and -inf come last, as
equals.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import inf, sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sift_mm.checkpoint.packing import count
from sift_mm.kernels.masks import Divided, can_divide, divide, join

# The size from which on a sample pays.
_LARGE = 1 << 17
# Scores that are computed at a time, so that they stay in cache.
_PIECE = 1 << 20


class Elementwise:
    """Scores that are computed where they are asked for.

    Args:
        function (Callable): Of tensors of shape (n,) each; the score of a
            position depends on the values there and on nothing else.
        *tensors (Tensor): The arguments, of one shape; flattened.
    """

    def __init__(
        self, function: Callable[..., Tensor], *tensors: Tensor
    ) -> None:
        self._function = function
        self._tensors = [tensor.detach().flatten() for tensor in tensors]

    def flatten(self) -> 'Elementwise':
        """Itself: positions are those of the flattened tensors."""
        return self

    def __getitem__(self, where: slice | Tensor) -> Tensor:
        """The scores at a slice, or at int64 positions."""
        return self._function(*(_at(t, where) for t in self._tensors))


class Magnitude:
    """Scores that the pass which compares them computes.

    Args:
        tensor (Tensor): Flattened; the scores are its magnitudes.
        sign (int): 1, or -1 for their negatives.
    """

    def __init__(self, tensor: Tensor, sign: int) -> None:
        self.tensor = tensor.detach().flatten()
        self.sign = sign

    def flatten(self) -> 'Magnitude':
        """Itself: positions are those of the flattened tensor."""
        return self

    def __getitem__(self, where: slice | Tensor) -> Tensor:
        """The scores at a slice, or at int64 positions."""
        return _at(self.tensor, where).abs() * self.sign


Scores = Tensor | Elementwise | Magnitude


def _at(tensor: Tensor, where: slice | Tensor) -> Tensor:
    if isinstance(where, slice):
        return tensor[where]
    # Several times as fast as the general indexing of few elements.
    return tensor.index_select(0, where)


@dataclass(frozen=True)
class Undivided:
    """Scores that may all be needed, on any device; see :func:`_array`.

    Args:
        places (Array): Positions, int64, shape (m,), rising.
        values (Array): Shape (m,), their scores.
    """

    places: Any
    values: Any

    def among(self, mask: Tensor, active: bool) -> tuple[int, Any]:
        """See :meth:`Divided.among`; none is above."""
        return 0, _array(mask)[self.places] == active

    def only(self, within: Any) -> 'Undivided':
        """See :meth:`Divided.only`."""
        return Undivided(self.places[within], self.values[within])

    def flip_(self, mask: Tensor, k: int, active: bool) -> None:
        """See :meth:`Divided.flip_`; k may be 0, and no more than these."""
        if not k:
            return
        there = self.only(self.among(mask, active)[1])
        last = _nth_highest(there.values, k)
        higher = there.places[there.values > last]
        equal = there.places[there.values == last]
        _array(mask)[higher] = not active
        _array(mask)[equal[: k - len(higher)]] = not active


Shortlist = Divided | Undivided


def top_mask(score: Scores, k: int, allowed: Tensor) -> Tensor:
    """A mask of the k highest of the allowed scores.

    Of n floating-point scores, masks are of shape (n,), and exactly k entries
    are True; at least k are allowed.
    """
    mask = allowed.clone()
    flip_best_(score, k, mask, True)
    return mask.logical_xor_(allowed)


def flip_best_(score: Scores, k: int, mask: Tensor, active: bool) -> None:
    """Flip the k highest scores of those active in a mask, or not, in place.

    Args:
        score (Scores): n floating-point scores.
        k (int): At most as many as there are.
        mask (Tensor): Bool, shape (n,), contiguous.
        active (bool): Of which.
    """
    score = score.flatten()
    if _is_large(score, mask):
        sample = _Sample(score, mask, active)
        low = sample.bound(sample.allowed, k, 4)
        high = sample.bound(sample.allowed, k, -4)
        found = _divide(score, low, high, mask, active)
        if 0 <= k - found.higher <= len(found.places):
            return found.flip_(mask, k, active)
    # Small, or the sample was misleading.
    _undivided(score, mask == active).flip_(mask, k, active)


def shortlist(score: Scores, k: int, mask: Tensor) -> Tensor | Shortlist:
    """For the k highest of those inactive then, of which k may be new.

    In doubt are at most 2 k of those inactive now, and of the others those
    that score as high; all, if fewer than k are inactive now. From one to all
    of those inactive now are asked for, and they stay so. Scores are not
    held.
    """
    score = score.flatten()
    found: Shortlist | None = None
    if _is_large(score, mask):
        # What scores among the k highest of all is chosen if it is inactive;
        # what scores lower than the k highest of those inactive now never is.
        sample = _Sample(score, mask, False)
        low = sample.bound(sample.allowed, k, 4)
        high = sample.bound(sample.all, k, -4)
        found = _divide(score, low, high, mask, None)
        higher, now = found.among(mask, False)
        if not found.higher <= k <= higher + count(now):
            found = None
    if found is None:
        found = _undivided(score, torch.ones_like(mask))
        higher, now = found.among(mask, False)
        if count(now) < k:
            return score[:]
    if count(now) > 2 * k:  # Many are equal, or all were few.
        grown = mask.clone()
        found.flip_(grown, k, False)
        chosen = now & found.among(grown, True)[1]
        lowest = float(found.values[chosen].min()) if chosen.any() else inf
        found = found.only(chosen | (~now & (found.values >= lowest)))
    return found


def _is_large(score: Scores, mask: Tensor) -> bool:
    # PyTorch's selection is linear and parallel on a GPU, not on the CPU.
    return (
        len(mask) >= _LARGE
        and score[:1].element_size() <= 4
        and can_divide(mask)
    )


def _array(tensor: Tensor) -> Any:
    """On the CPU as NumPy's, which compares and selects much faster."""
    return tensor.numpy() if tensor.device.type == 'cpu' else tensor


def _widened(score: Tensor) -> Tensor:
    """In a type that NumPy has."""
    return score.float() if score.element_size() < 4 else score


def _ranked(score: Tensor) -> Any:
    return _array(_widened(score).nan_to_num(-inf, inf, -inf))


def _nth_highest(values: Any, n: int) -> float:
    if isinstance(values, Tensor):
        return float(values.topk(n, sorted=False).values.min())
    return float(np.partition(values, -n)[-n])


@lru_cache(maxsize=64)
def _sample_places(n: int) -> tuple[int, Tensor]:
    """A place in each stretch, and how long a stretch is."""
    # Each costs a visit to memory. A bracket that is some deviations wide has
    # n / sqrt(n / step) places, which cost as much then.
    step = 2 * round(n ** (1 / 3))
    starts = torch.arange(0, n - step + 1, step)
    # Regular places would see one position of each kernel, or none.
    generator = torch.Generator().manual_seed(0)
    return step, starts + torch.randint(
        step, starts.shape, generator=generator
    )


class _Sample:
    """Scores at random places, one in each stretch of equal length."""

    def __init__(self, score: Scores, mask: Tensor, active: bool) -> None:
        self.step, places = _sample_places(len(mask))
        self.all = _ranked(score[places])
        self.allowed = self.all[_array(_at(mask, places) == active)]

    def bound(self, values: Any, k: int, deviations: float) -> float:
        """The k-th highest score, but for that many standard deviations."""
        expected = k / self.step
        rank = round(expected + deviations * (sqrt(expected) + 1))
        if rank < 1:
            return inf
        return _nth_highest(values, rank) if rank <= len(values) else -inf


def _divide(
    score: Scores, low: float, high: float, mask: Tensor, active: bool | None
) -> Divided:
    """Divide the scores of those active or not; of both, if it is None."""
    source, sign = score, 0
    if isinstance(score, Magnitude):
        source, sign = score.tensor, score.sign

    def part(values: Tensor, sign: int, where: slice) -> Divided:
        inside = None if active is None else mask[where]
        return divide(values, sign, inside, bool(active), low, high)

    if isinstance(source, Tensor) and source.dtype == torch.float32:
        return part(source, sign, slice(None))
    pieces = [slice(i, i + _PIECE) for i in range(0, len(mask), _PIECE)]
    return join([part(_widened(score[p]), 0, p) for p in pieces])


def _undivided(score: Scores, allowed: Tensor) -> Undivided:
    places = allowed.nonzero()[:, 0]
    return Undivided(_array(places), _ranked(score[places]))
