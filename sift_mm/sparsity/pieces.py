"""Work on large tensors in pieces that stay in cache."""

from collections.abc import Callable
from typing import TypeVar

# Elements a piece: so few that PyTorch computes them in the calling thread.
# Its own threads would wait for each other after every operator, and long
# where other programs compete for the cores; Python's would wait for the
# interpreter's lock as often, and took longer than one alone.
_PIECE = 1 << 15

T = TypeVar('T')


def by_pieces(function: Callable[[slice], T], n: int) -> list[T]:
    """Call a function for every piece of n elements.

    What it returned comes in the order of the pieces.
    """
    return [
        function(slice(start, min(start + _PIECE, n)))
        for start in range(0, n, _PIECE)
    ]
