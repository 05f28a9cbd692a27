"""Spectrum of a mask, read as a bipartite graph."""

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from sift_mm.errors import UserError


@dataclass(frozen=True)
class SpectralGap:
    """Largest singular values of a layer against the Ramanujan bound.

    Args:
        first (float): Largest singular value of the adjacency matrix.
        second (float): Second largest.
        bound (float): sqrt(d_l - 1) + sqrt(d_r - 1), for the mean degrees
            d_l and d_r of the two sides.
    """

    first: float
    second: float
    bound: float

    @property
    def excess(self) -> float:
        """Bound minus second value: above 0 the graph is Ramanujan."""
        return self.bound - self.second


@torch.no_grad()
def spectral_gap(mask: Tensor, weight: Tensor | None = None) -> SpectralGap:
    """Return the spectral gap of a mask (Sparse-IFT, spectral analysis).

    The bipartite graph connects output channels with (input channel, tap)
    pairs.

    Args:
        mask (Tensor): Bool, shape (out, in, *kernel).
        weight (Tensor, optional): Weight of the same shape; edges then have
            the weight ``|w|``. The bound does not depend on it.

    Raises:
        UserError: If the mask has fewer than two rows or columns.
    """
    adjacency = mask.flatten(1).float()
    if min(adjacency.shape) < 2:
        raise UserError(
            'A second singular value needs a layer of at least '
            f'2 x 2; got {tuple(adjacency.shape)}.'
        )
    edges = float(adjacency.sum())
    degrees = [edges / side for side in adjacency.shape]
    bound = sum(sqrt(max(d - 1, 0.0)) for d in degrees)
    if weight is not None:
        # A product would keep NaN outside the mask.
        adjacency = weight.abs().float().masked_fill(~mask, 0).flatten(1)
    first, second = torch.linalg.svdvals(adjacency)[:2].tolist()
    return SpectralGap(first, second, bound)
