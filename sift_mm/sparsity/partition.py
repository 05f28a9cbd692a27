"""Which positions score highest: exactly k of them, in linear time.

After Floyd and Rivest (1975): a sample of the scores brackets the k-th
highest. One pass, in pieces that stay in cache, finds what lies above the
bracket, which is chosen, and the few positions within it, among which an
exact selection chooses the rest. Among equal scores the lower position comes
first; NaN and -inf come last, as equals.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sift_mm.sparsity.packing import count, pack, unpack
from sift_mm.sparsity.pieces import by_pieces

# Scores in a sample, and the size from which on a sample pays.
_SAMPLE = 1 << 15
_LARGE = 1 << 17


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
        return self._function(*(tensor[where] for tensor in self._tensors))


Scores = Tensor | Elementwise


@dataclass(frozen=True)
class Partition:
    """Positions above a bracket, and those within it; see :func:`_array`.

    Args:
        above (Array): Bool, shape (n,).
        positions (Array): int64, shape (m,), rising.
        values (Array): Shape (m,), their scores, lower than all above.
    """

    above: Any
    positions: Any
    values: Any

    def among(self, allowed: Tensor) -> 'Partition':
        """The part of it where a bool tensor of shape (n,) is True."""
        inside = _array(allowed)[self.positions]
        return Partition(
            self.above & _array(allowed),
            self.positions[inside],
            self.values[inside],
        )

    def best_(self, k: int) -> Tensor | None:
        """Makes ``above`` the mask of the k highest scores.

        Returns:
            Tensor, optional: Bool, shape (n,); None, and nothing is done, if
            the k-th highest score is not within the bracket.
        """
        need = k - count(self.above)
        if not 0 <= need <= len(self.values):
            return None
        if need:
            last = _nth_highest(self.values, need)
            higher = self.values > last
            equal = self.positions[self.values == last]
            self.above[self.positions[higher]] = True
            self.above[equal[: need - count(higher)]] = True
        return torch.as_tensor(self.above)


class Shortlist:
    """What a choice of k can need of the scores, whichever k may not stay.

    An eighth of a byte for each position, and 12 bytes for each of the few
    that are in doubt.
    """

    def __init__(self, partition: Partition) -> None:
        self._above = pack(torch.as_tensor(partition.above))
        self.positions = partition.positions
        self._values = partition.values

    def best(self, k: int, allowed: Tensor) -> Tensor:
        """A mask of the k highest of the allowed scores, see top_mask."""
        above = unpack(self._above, len(allowed)).to(allowed.device)
        whole = Partition(_array(above), self.positions, self._values)
        return _certain(whole.among(allowed).best_(k))


def top_mask(score: Scores, k: int, allowed: Tensor) -> Tensor:
    """A mask of the k highest of the allowed scores.

    Of n floating-point scores, masks are of shape (n,), and exactly k entries
    are True; at least k are allowed.
    """
    score = score.flatten()
    best = None
    if _is_large(allowed):
        sample = _Sample(score, allowed)
        low = sample.bound(sample.allowed, k, 4)
        high = sample.bound(sample.allowed, k, -4)
        best = _divide(score, low, high, len(allowed), allowed).best_(k)
    if best is None:  # Small, or the sample was misleading.
        best = _certain(_undivided(score, allowed).best_(k))
    return best


def shortlist(score: Scores, k: int, allowed: Tensor) -> Shortlist:
    """For the k highest of those allowed then, of which k may be new.

    In doubt are at most 2 k of those allowed now, and of the others those that
    score as high. From one to all of those allowed now are asked for, and
    they stay allowed. Scores are not held.
    """
    found = _divide_twice(score.flatten(), k, allowed)
    inside = _array(allowed)[found.positions]
    if count(inside) > 2 * k:  # Many are equal, or all were few.
        best = found.among(allowed).best_(k)
        chosen = _array(_certain(best))[found.positions]
        lowest = float(found.values[chosen].min()) if chosen.any() else inf
        needed = chosen | (~inside & (found.values >= lowest))
        found = Partition(
            found.above, found.positions[needed], found.values[needed]
        )
    return Shortlist(found)


def _divide_twice(score: Scores, k: int, allowed: Tensor) -> Partition:
    # What scores among the k highest of all is chosen if it is allowed; what
    # scores lower than the k highest of those allowed now never is.
    if _is_large(allowed):
        sample = _Sample(score, allowed)
        low = sample.bound(sample.allowed, k, 4)
        high = sample.bound(sample.all, k, -4)
        found = _divide(score, low, high, len(allowed))
        now = _array(allowed)
        reached = count(now[found.positions]) + count(found.above & now)
        if count(found.above) <= k <= reached:
            return found
    return _undivided(score, torch.ones_like(allowed))


def _certain(mask: Tensor | None) -> Tensor:
    assert mask is not None
    return mask


def _is_large(allowed: Tensor) -> bool:
    # PyTorch's selection is linear and parallel on a GPU, not on the CPU.
    return allowed.device.type == 'cpu' and len(allowed) >= _LARGE


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


class _Sample:
    """Scores at random places, one in each stretch of equal length."""

    def __init__(self, score: Scores, allowed: Tensor) -> None:
        n = len(allowed)
        self.step = max(n // _SAMPLE, 16)
        starts = torch.arange(0, n - self.step + 1, self.step)
        # Regular places would see one position of each kernel, or none.
        offsets = torch.randint(
            self.step,
            starts.shape,
            generator=torch.Generator().manual_seed(0),
        )
        places = starts + offsets
        self.all = _ranked(score[places])
        self.allowed = self.all[_array(allowed)[_array(places)]]

    def bound(self, values: Any, k: int, deviations: float) -> float:
        """The k-th highest score, but for that many standard deviations."""
        expected = k / self.step
        rank = round(expected + deviations * (sqrt(expected) + 1))
        if rank < 1:
            return inf
        return _nth_highest(values, rank) if rank <= len(values) else -inf


def _divide(
    score: Scores,
    low: float,
    high: float,
    n: int,
    allowed: Tensor | None = None,
) -> Partition:
    above = np.empty(n, np.bool_)
    inside = None if allowed is None else _array(allowed)

    def piece(where: slice) -> tuple[np.ndarray, np.ndarray]:
        numbers = _array(_widened(score[where]))
        higher = np.greater(numbers, high, out=above[where])
        band = numbers >= low
        if inside is not None:
            higher &= inside[where]
            band &= inside[where]
        band ^= higher
        at = band.nonzero()[0]
        return at + where.start, numbers[at]

    positions, values = zip(*by_pieces(piece, n), strict=True)
    return Partition(above, np.concatenate(positions), np.concatenate(values))


def _undivided(score: Scores, allowed: Tensor) -> Partition:
    positions = allowed.nonzero()[:, 0]
    return Partition(
        _array(torch.zeros_like(allowed)),
        _array(positions),
        _ranked(score[positions]),
    )
