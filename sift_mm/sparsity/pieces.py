"""Work on large tensors in pieces that stay in cache."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

# Elements a piece: so few that PyTorch computes them in the calling thread.
# Its own threads would wait for each other after every operator, and long
# where other programs compete for the cores.
_PIECE = 1 << 15
# Elements that a thread takes at a time.
_SPAN = 1 << 18

T = TypeVar('T')


def by_pieces(function: Callable[[slice], T], n: int) -> list[T]:
    """Call a function for every piece of n elements, in several threads.

    It may write to its own slice alone. What it returned comes in the order
    of the pieces.
    """

    def span(start: int) -> list[T]:
        stop = min(start + _SPAN, n)
        return [
            function(slice(i, min(i + _PIECE, stop)))
            for i in range(start, stop, _PIECE)
        ]

    starts = range(0, n, _SPAN)
    threads = min(torch.get_num_threads(), len(starts))
    if threads <= 1:
        spans = [span(start) for start in starts]
    else:
        with ThreadPoolExecutor(threads) as pool:
            spans = list(pool.map(span, starts))
    return [result for results in spans for result in results]
