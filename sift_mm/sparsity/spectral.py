"""Spectral quantities of a mask, read as a bipartite graph."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt

import numpy as np
from torch import Tensor

#: Largest smaller side of a graph whose Gram matrix is computed. At
#: 1024 x 9216 and density 0.25 this takes 0.8 s of one core, and svds 4.4 s,
#: since the singular values behind the first lie close together.
GRAM = 4096
#: Smallest mean degree on both sides of a regular subgraph.
MIN_DEGREE = 3


@dataclass(frozen=True)
class Spectrum:
    """The four spectral quantities of Sparse-IFT for one layer.

    Left vertices are the (input channel, tap) pairs, right vertices the output
    channels, edges the active weights; vertices without an edge are left out.
    A filter of a grouped convolution has the inputs of its own group only, and
    the graph joins those of all groups.

    Args:
        ramanujan_gap (float, optional): sqrt(d_l - 1) + sqrt(d_r - 1), for the
            mean degrees d_l and d_r of the two sides, less the second singular
            value of the 0/1 adjacency matrix. From 0 on the graph is
            Ramanujan. None for a graph with one vertex on a side.
        imdb (float, optional): Iterative mean difference of bound (Hoang et
            al., ICLR 2023): mean Ramanujan gap of the left-regular subgraphs.
            Each consists of all left vertices of one degree and their
            neighbours; a subgraph with a mean degree below 3 on a side is
            left out. None without a subgraph.
        weighted_gap (float, optional): First less second singular value of
            the matrix of active weights' magnitudes (Hoang et al., NeurIPS
            2023). None without weights, or if one is not finite.
        imsg (float, optional): Iterated mean spectral gap: mean weighted gap
            of the same subgraphs as in ``imdb``.
    """

    ramanujan_gap: float | None = None
    imdb: float | None = None
    weighted_gap: float | None = None
    imsg: float | None = None


def spectrum(mask: Tensor, weight: Tensor | None = None) -> Spectrum:
    """Compute the spectral quantities of a layer.

    Args:
        mask (Tensor): Bool, shape (out, in, *kernel).
        weight (Tensor, optional): Weight of the same shape, for the weighted
            quantities. Values outside the mask play no part.
    """
    edges = mask.flatten(1).cpu().numpy()
    values = None
    if weight is not None:
        # A product would keep NaN outside the mask.
        inside = weight.detach().abs().double().masked_fill(~mask, 0)
        if inside.isfinite().all():  # Else of a training that diverged.
            values = inside.flatten(1).cpu().numpy()
    whole = _gaps(edges, values)
    if whole is None:
        return Spectrum()
    parts = [
        gaps
        for columns in _columns_by_degree(edges)
        if (
            gaps := _gaps(
                edges[:, columns],
                None if values is None else values[:, columns],
                MIN_DEGREE,
            )
        )
    ]
    unweighted, weighted = zip(*parts, strict=True) if parts else ((), ())
    return Spectrum(
        whole[0],
        float(np.mean(unweighted)) if parts else None,
        whole[1],
        float(np.mean(weighted)) if parts and values is not None else None,
    )


def _columns_by_degree(edges: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the columns of each number of edges."""
    degrees = edges.sum(0)
    for degree in np.unique(degrees[degrees > 0]):
        yield np.flatnonzero(degrees == degree)


def _gaps(
    edges: np.ndarray, values: np.ndarray | None, least: float = 0
) -> tuple[float, float | None] | None:
    """Return Ramanujan gap and weighted gap of a graph.

    Args:
        edges (np.ndarray): Bool, shape (right, left).
        values (np.ndarray, optional): Magnitudes of the weights.
        least (float): Smallest mean degree.

    Returns:
        tuple: The gaps; or None for one vertex on a side, or for a mean degree
        below ``least``.
    """
    rows, columns = edges.any(1), edges.any(0)
    right, left = int(rows.sum()), int(columns.sum())
    if min(right, left) < 2:
        return None
    degrees = [edges.sum() / side for side in (right, left)]
    if min(degrees) < least:
        return None
    inside = np.ix_(rows, columns)
    second = _singular_values(edges[inside].astype(np.float64))[1]
    bound = sum(sqrt(degree - 1) for degree in degrees)
    if values is None:
        return bound - second, None
    one, other = _singular_values(values[inside])
    return bound - second, one - other


def _singular_values(matrix: np.ndarray) -> tuple[float, float]:
    """Return the two largest singular values of a matrix."""
    # Imported here: scipy takes 0.2 s, and few programs need it.
    from scipy.linalg import eigh
    from scipy.sparse import csr_array
    from scipy.sparse.linalg import svds

    side = min(matrix.shape)
    if side > GRAM:
        # ones would be the first singular vector of a regular graph.
        start = np.random.default_rng(0).random(side)
        found = svds(
            csr_array(matrix), 2, v0=start, return_singular_vectors=False
        )
    else:
        if matrix.shape[0] > side:
            matrix = matrix.T
        squares = eigh(
            matrix @ matrix.T,
            eigvals_only=True,
            subset_by_index=(side - 2, side - 1),
        )
        found = np.sqrt(np.maximum(squares, 0))
    second, first = sorted(map(float, found))
    return first, second
