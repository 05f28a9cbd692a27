"""Memory of large outputs, used again.

The C library gives large blocks back to the system as soon as they are free,
and gets others as pages that are zeroed at the first touch, one fault each:
for activations several times as wide as the dense network's up to a third of
the time. What was an output here waits for the next one instead, never more
of it than was once in use at the same time.
"""

import math
import mmap
import sys
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

#: Bytes of an output, below which the C library keeps its memory too.
SMALLEST = 4 << 20
#: How much larger a block may be than what it is used for.
WASTE = 1.25
_PAGE = 2 << 20  # A huge one, where the system has them.


def _references(blocks: Sequence[object]) -> list[int]:
    return [sys.getrefcount(block) for block in blocks]


#: Of a block that no tensor has; how many that are is Python's own business.
_IDLE = _references([object()])[0]


class Blocks(threading.local):
    """The blocks of one thread, in use and idle, the latest taken last.

    A tensor refers to its block for as long as anything reads it, other
    tensors of its storage included, in whatever thread.
    """

    def __init__(self) -> None:
        self.all: list[mmap.mmap] = []
        #: Bytes that were in use at the same time, at most.
        self.most = 0

    def idle(self) -> list[mmap.mmap]:
        """Those that no tensor has."""
        counts = _references(self.all)
        return [
            block
            for block, count in zip(self.all, counts, strict=True)
            if count == _IDLE
        ]

    def bytes(self) -> int:
        """Of all of them."""
        return sum(map(len, self.all))

    def take(self, size: int) -> mmap.mmap:
        """Find or make one that is idle.

        Args:
            size: Bytes that it has at least.

        Raises:
            OSError: The system has no memory.
        """
        size = math.ceil(size / _PAGE) * _PAGE
        idle = self.idle()
        fit = [block for block in idle if size <= len(block) <= WASTE * size]
        if fit:
            block = min(fit, key=len)
            self.all.remove(block)
        else:
            used = self.bytes() - sum(map(len, idle)) + size
            self.most = max(self.most, used)
            for block in idle:
                if self.bytes() + size <= self.most:
                    break
                self.all.remove(block)
            # Private: what forks write is their own.
            block = mmap.mmap(
                -1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            )
            if hasattr(mmap, 'MADV_HUGEPAGE'):
                block.madvise(mmap.MADV_HUGEPAGE)
        self.all.append(block)
        return block


BLOCKS = Blocks()


def empty_output(*shape: int) -> Tensor:
    """A tensor of float32 on the CPU whose numbers are anything."""
    count = math.prod(shape)
    if 4 * count < SMALLEST:
        return torch.empty(shape, dtype=torch.float32)
    block = BLOCKS.take(4 * count)
    flat = torch.frombuffer(block, dtype=torch.float32, count=count)
    return flat.resize_(shape)  # No view: those are not written in place.
