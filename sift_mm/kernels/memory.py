"""Memory of large outputs, used again.

The C library gives large blocks back to the system as soon as they are free,
and gets others as pages that are zeroed at the first touch, one fault each:
for activations several times as wide as a dense network's, up to a third of
the time. Outputs here are pieces of one reservation, whose pages stay.
"""

import math
import mmap
import os
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

#: Bytes of an output, below which the C library keeps its memory too.
SMALLEST = 1 << 20
#: Pieces, more than a step takes, after which pages that none of them reached
#: go back to the system.
EPOCH = 1024
_NO_RESERVE = getattr(mmap, 'MAP_NORESERVE', 0x4000)


def _references(pieces: Sequence[tuple[int, object]]) -> list[int]:
    return [sys.getrefcount(piece) for _, piece in pieces]


#: Of a piece that no tensor has; how many that are is Python's own business.
_UNUSED = _references([(0, object())])[0]


class Arena(threading.local):
    """Pieces of a thread's reservation, each in the smallest gap that fits.

    A tensor refers to its piece for as long as anything reads its storage, in
    whatever thread, and is asked for no notice when it is gone: pieces are
    looked through when one is wanted.
    """

    def __init__(self) -> None:
        #: First byte and piece, those in use and some that no longer are.
        self.pieces: list[tuple[int, memoryview]] = []
        #: End of the highest since the epoch began, and of touched pages.
        self.reached = self.touched = 0
        self._taken = 0
        self.size = -1  # Not reserved yet.

    def _reserve(self) -> None:
        # As much as the machine has, of addresses alone. Private: what forks
        # write is their own.
        self.size = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
        try:
            self._memory = mmap.mmap(-1, self.size, flags=flags)
        except OSError:  # A limit on addresses: nothing is kept.
            self.size = 0
            return
        if hasattr(mmap, 'MADV_HUGEPAGE'):
            with suppress(OSError):  # A system that was built without.
                self._memory.madvise(mmap.MADV_HUGEPAGE)
        self._whole = memoryview(self._memory)

    def take(self, size: int) -> memoryview | None:
        """Take a piece.

        Args:
            size: Bytes that it has at least.

        Returns:
            What is free again when nothing refers to it; None where there is
            no room.
        """
        if self.size < 0:
            self._reserve()
        size = math.ceil(size / mmap.PAGESIZE) * mmap.PAGESIZE
        self._forget_unused()
        start, index = self._gap(size)
        if start + size > self.size:
            return None
        found = self._whole[start : start + size]
        self.pieces.insert(index, (start, found))
        self._account(start + size)
        return found

    def release(self) -> None:
        """Give back all pages of which no tensor has any."""
        self._forget_unused()
        end = 0
        for first, piece in [*self.pieces, (self.touched, b'')]:
            self._give_back(end, first)
            end = first + len(piece)
        self.touched = self.reached = self._end()

    def _forget_unused(self) -> None:
        counts = _references(self.pieces)
        self.pieces = [
            piece
            for piece, count in zip(self.pieces, counts, strict=True)
            if count > _UNUSED
        ]

    def _end(self) -> int:
        """Of the highest piece."""
        first, piece = self.pieces[-1] if self.pieces else (0, b'')
        return first + len(piece)

    def _give_back(self, start: int, end: int) -> None:
        if start < end:
            self._memory.madvise(mmap.MADV_DONTNEED, start, end - start)

    def _gap(self, size: int) -> tuple[int, int]:
        """Where the smallest gap that fits begins, and its index."""
        end = 0
        gaps = []
        for index, (first, piece) in enumerate(self.pieces):
            if first - end >= size:
                gaps.append((first - end, end, index))
            end = first + len(piece)
        _, start, index = min(gaps, default=(0, end, len(self.pieces)))
        return start, index

    def _account(self, end: int) -> None:
        self.reached = max(self.reached, end)
        self.touched = max(self.touched, end)
        self._taken += 1
        if self._taken % EPOCH == 0:
            self._give_back(self.reached, self.touched)
            self.touched, self.reached = self.reached, self._end()


ARENA = Arena()
# A data loader's workers would hold the pages of old activations as long as
# they live, beside those that the parent then writes.
if hasattr(os, 'register_at_fork'):
    os.register_at_fork(before=ARENA.release)


def empty_output(*shape: int) -> Tensor:
    """A tensor of float32 on the CPU whose numbers are anything."""
    count = math.prod(shape)
    piece = ARENA.take(4 * count) if 4 * count >= SMALLEST else None
    if piece is None:
        return torch.empty(shape, dtype=torch.float32)
    flat = torch.frombuffer(piece, dtype=torch.float32, count=count)
    return flat.resize_(shape)  # No view: those are not written in place.
