"""N:M sparsity."""

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from sift_mm.errors import UserError
from sift_mm.sparsity.structures.rows import Rows
from sift_mm.sparsity.structures.structure import STRUCTURES
from sift_mm.validation import Count


@STRUCTURES.register
class NM(Rows):
    """Structure with n active weights of each m consecutive inputs.

    The inputs are those of one filter at one kernel tap. If m does not divide
    their number, the last group of r inputs has n r / m active ones, rounded
    up. A layer that the distribution leaves dense stays dense.

    Args:
        n (int): Active weights of a group.
        m (int): Inputs of a group.
    """

    def __init__(self, n: Count = 2, m: Count = 4) -> None:
        if n >= m:
            raise UserError(
                f'n={n} and m={m}: n of m weights are active, with n below m.'
            )
        self.n, self.m = n, m

    @property
    def density(self) -> float:
        """Density n / m."""
        return self.n / self.m

    def check(self, shape: tuple[int, ...], groups: int) -> str:
        """Refuse filters with fewer inputs than a group."""
        if shape[1] >= self.m:
            return ''
        return f'a filter has {shape[1]} inputs, less than m={self.m}'

    def fit(self, shape: tuple[int, ...], count: int) -> int:
        """Return the only count, or all weights of a dense layer."""
        return sum(self._groups(shape, count)) * (prod(shape) // shape[1])

    def row_counts(self, shape: torch.Size, count: int) -> Tensor:
        """Return n for each group, fewer for the last one of a filter."""
        groups = torch.tensor(self._groups(shape, count))
        return groups.repeat(prod(shape) // shape[1])

    def _groups(self, shape: tuple[int, ...], count: int) -> list[int]:
        """Return the active weights of the groups of a filter's tap."""
        whole, rest = divmod(shape[1], self.m)
        if count >= prod(shape):
            return [self.m] * whole + [rest] * (rest > 0)
        return [self.n] * whole + [-(-self.n * rest // self.m)] * (rest > 0)

    def rows(self, tensor: Tensor, fill: Any = 0) -> Tensor:
        """Return groups of m inputs."""
        last = tensor.movedim(1, -1)
        if missing := -last.shape[-1] % self.m:
            last = pad(last, (0, missing), value=fill)
        return last.reshape(-1, self.m)

    def unrows(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """Return the weight of the groups, without padding."""
        last = rows.reshape(shape[0], *shape[2:], -1)[..., : shape[1]]
        return last.movedim(-1, 1).contiguous()
