"""Blocks of filters that share their places."""

from math import prod

import torch
from torch import Tensor

from sift_mm.checkpoint.packing import count as count_active
from sift_mm.errors import UserError
from sift_mm.sparsity.structures.structure import STRUCTURES, Structure
from sift_mm.sparsity.structures.unstructured import Unstructured
from sift_mm.validation import Count


@STRUCTURES.register
class Block(Structure):
    """Structure in which consecutive filters share their active places.

    A place is an input channel and a kernel tap; its score is the sum over
    the filters. If ``filters`` does not divide the filters of a layer, the
    last block has fewer, and its own count.

    Args:
        filters (int): Filters of a block, at least 2.
    """

    def __init__(self, filters: Count = 2) -> None:
        if filters < 2:
            raise UserError('filters=1: a block has at least 2 filters.')
        self.filters = filters

    def check(self, shape: tuple[int, ...], groups: int) -> str:
        """Refuse blocks that reach over two groups of a convolution."""
        filters = shape[0] // groups
        if groups == 1 or filters % self.filters == 0:
            return ''
        return f'blocks do not divide the {filters} filters of a group'

    def fit(self, shape: tuple[int, ...], count: int) -> int:
        """Return the next count that full and last blocks can have."""
        shares = self._share(shape, count)
        sizes = self._sizes(shape)
        return sum(a * b for a, b in zip(shares, sizes, strict=True))

    def drop(self, score: Tensor, mask: Tensor, k: int) -> Tensor:
        """Drop the places of highest score, k weights or slightly fewer."""
        active = max(1, count_active(mask))
        parts = []
        for sums, part in zip(
            self._sums(score), self._split(mask), strict=True
        ):
            places = part[:, 0]
            some = k * count_active(places) // active
            parts.append(Unstructured().drop(sums, places, some))
        return self._join(parts, mask.shape)

    def grow(
        self, score: Tensor | list[Tensor], mask: Tensor, k: int
    ) -> Tensor:
        """Grow the places of highest score."""
        counts = self._share(mask.shape, count_active(mask) + k)
        sums = self._sums(score) if isinstance(score, Tensor) else score
        parts = []
        for one, part, count in zip(
            sums, self._split(mask), counts, strict=True
        ):
            places = part[:, 0]
            some = count - count_active(places)
            parts.append(Unstructured().grow(one, places, some))
        return self._join(parts, mask.shape)

    def shortlist(self, score: Tensor, mask: Tensor, k: int) -> list[Tensor]:
        """Return the scores of places, in place of those of weights."""
        return self._sums(score)

    def _sizes(self, shape: tuple[int, ...]) -> list[int]:
        """Return the filters of a full block, and of the last if fewer."""
        blocks, rest = divmod(shape[0], self.filters)
        return [self.filters] * (blocks > 0) + [rest] * (rest > 0)

    def _share(self, shape: tuple[int, ...], count: int) -> list[int]:
        """Return the active places of full blocks and of the last one.

        The last block has the density of the others, rounded. Both rise with
        the count, so that growth takes places from none.
        """
        blocks, rest = divmod(shape[0], self.filters)
        places = prod(shape[1:])
        if not blocks:
            return [min(max(round(count / rest), 1), places)]

        def last(whole: int) -> int:
            return (2 * whole + blocks) // (2 * blocks)

        near = int(count / (self.filters + rest / blocks))
        whole = min(
            (min(max(near + i, 1), blocks * places) for i in range(-1, 3)),
            key=lambda n: abs(n * self.filters + last(n) * rest - count),
        )
        return [whole, last(whole)] if rest else [whole]

    def _split(self, tensor: Tensor) -> list[Tensor]:
        """Return full and last blocks, (blocks, filters, places) each."""
        sizes = self._sizes(tuple(tensor.shape))
        flat = tensor.reshape(len(tensor), -1)
        whole = len(flat) // self.filters * self.filters
        parts = [part for part in (flat[:whole], flat[whole:]) if len(part)]
        return [
            part.unflatten(0, (-1, size))
            for part, size in zip(parts, sizes, strict=True)
        ]

    def _sums(self, score: Tensor) -> list[Tensor]:
        """Return the scores of places, in full and last blocks."""
        dtype = torch.promote_types(score.dtype, torch.float32)
        return [part.sum(1, dtype=dtype) for part in self._split(score)]

    def _join(self, parts: list[Tensor], shape: torch.Size) -> Tensor:
        """Return the mask of the places of each part, for all filters."""
        sizes = self._sizes(tuple(shape))
        filters = [
            part.repeat_interleave(size, 0)
            for part, size in zip(parts, sizes, strict=True)
        ]
        return torch.cat(filters).reshape(shape)
