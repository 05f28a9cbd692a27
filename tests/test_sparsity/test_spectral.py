from math import cos, pi, sqrt

import numpy as np
import pytest
import torch

from sift_mm.sparsity import spectral
from sift_mm.sparsity.spectral import Spectrum, spectrum


def complete(right, left):
    return torch.ones(right, left, dtype=torch.bool)


def circulant(size, places):
    """Connect vertex i to i + place, for each place, modulo the size."""
    rows = [torch.arange(size)] * len(places)
    mask = torch.zeros(size, size, dtype=torch.bool)
    for row, place in zip(rows, places, strict=True):
        mask[row, (row + place) % size] = True
    return mask


def union(*masks):
    return torch.block_diag(*(mask.float() for mask in masks)).bool()


def close(value):
    # The root of a rounded zero is large.
    return pytest.approx(value, rel=1e-6, abs=1e-6)


# Of K(m, n) the singular values are sqrt(m n), 0, ...
@pytest.mark.parametrize('shape', [(4, 9), (9, 4), (5, 2, 3, 3), (5, 7, 1, 1)])
def test_complete_graph(shape):
    right, left = shape[0], int(np.prod(shape[1:]))
    found = spectrum(torch.ones(shape).bool(), torch.full(shape, -2.0))
    bound = sqrt(right - 1) + sqrt(left - 1)
    first = 2 * sqrt(right * left)
    assert found == Spectrum(*map(close, (bound, bound, first, first)))


# Of the incidence graph of a projective plane of order q, whose lines are the
# shifts of a difference set, they are q + 1, sqrt(q), ...
@pytest.mark.parametrize('gram', [0, spectral.GRAM])
@pytest.mark.parametrize(
    'q, points', [(2, [0, 1, 3]), (3, [0, 1, 3, 9]), (4, [0, 1, 4, 14, 16])]
)
def test_projective_plane(monkeypatch, q, points, gram):
    monkeypatch.setattr(spectral, 'GRAM', gram)
    mask = circulant(q**2 + q + 1, points)
    found = spectrum(mask, mask.float())
    gap, weighted = 2 * sqrt(q) - sqrt(q), q + 1 - sqrt(q)
    assert found == Spectrum(*map(close, (gap, gap, weighted, weighted)))


# Of a cycle of 2 n vertices they are 2 |cos(pi k / n)|. Its degree is below 3.
@pytest.mark.parametrize('n', [3, 8, 30])
def test_cycle(n):
    assert spectrum(circulant(n, [0, 1])) == Spectrum(
        ramanujan_gap=close(2 - 2 * cos(pi / n))
    )


@pytest.mark.parametrize('gram', [0, spectral.GRAM])
def test_two_copies_have_every_value_twice(monkeypatch, gram):
    monkeypatch.setattr(spectral, 'GRAM', gram)
    mask = union(complete(4, 6), complete(4, 6))
    found = spectrum(mask, mask.float())
    assert found.ramanujan_gap == close(sqrt(3) + sqrt(5) - sqrt(24))
    assert found.weighted_gap == close(0)


def test_regular_subgraphs_are_those_of_one_left_degree():
    # Five left vertices of degree 3, six of degree 4, nine of degree 2, which
    # are too few, and a row and a column without any.
    parts = complete(3, 5), complete(4, 6), complete(2, 9), complete(1, 1)
    mask = union(*parts)
    mask[-1] = False
    values = [part * v for part, v in zip(parts, (2, -3, 1, 1), strict=True)]
    found = spectrum(mask, torch.block_diag(*values))
    right, left = 57 / 9, 57 / 20
    singular = [2 * sqrt(15), 3 * sqrt(24)]
    assert found == Spectrum(
        # sqrt(24), sqrt(18), sqrt(15).
        close(sqrt(right - 1) + sqrt(left - 1) - sqrt(18)),
        close((sqrt(2) + sqrt(4) + sqrt(3) + sqrt(5)) / 2),
        close(singular[1] - singular[0]),
        close(sum(singular) / 2),
    )


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('shape', [(11, 40), (12, 8, 3, 3)])
def test_against_a_plain_decomposition(seed, shape):
    print(f'seed {seed}')
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape, generator=generator) < 0.4
    weight = torch.randn(shape, generator=generator)
    matrix = mask.flatten(1).double().numpy()
    values = matrix * np.abs(weight.flatten(1).double().numpy())
    weight[~mask] = float('nan')
    gaps = []
    degrees = matrix.sum(0)
    for degree in (None, *sorted({*degrees} - {0})):
        chosen = slice(None) if degree is None else degrees == degree
        graph, weights = matrix[:, chosen], values[:, chosen]
        sides = [(graph.sum(axis) > 0).sum() for axis in (0, 1)]
        means = [graph.sum() / side for side in sides]
        if degree is None or min(means) >= 3:
            second = np.linalg.svd(graph, compute_uv=False)[1]
            first, other = np.linalg.svd(weights, compute_uv=False)[:2]
            bound = sqrt(means[0] - 1) + sqrt(means[1] - 1)
            gaps.append((bound - second, first - other))
    means = np.mean(gaps[1:], axis=0)
    found = spectrum(mask, weight)
    assert (found.ramanujan_gap, found.weighted_gap) == close(gaps[0])
    assert (found.imdb, found.imsg) == close(tuple(means))


@pytest.mark.parametrize('shape', [(1, 9), (9, 1), (4, 1, 1, 1)])
def test_a_star_has_no_second_value(shape):
    assert spectrum(torch.ones(shape).bool(), torch.ones(shape)) == Spectrum()


def test_a_weight_that_diverged_leaves_the_graph_its_gaps():
    weight = torch.tensor([[1.0, float('nan')], [1, 1]])
    found = spectrum(torch.ones(2, 2).bool(), weight)
    assert found == Spectrum(ramanujan_gap=close(2.0))
