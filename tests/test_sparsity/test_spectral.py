from math import sqrt

import numpy as np
import pytest
import torch

from sift_mm.sparsity.spectral import spectral_gap


# Every output to every input: rank one, sigma_1 = sqrt(m n). Outputs have
# degree n, inputs m. A 3 x 3 kernel makes nine inputs of one.
@pytest.mark.parametrize(
    'shape, m, n',
    [
        ((4, 9), 4, 9),
        ((9, 4), 9, 4),
        ((2, 2), 2, 2),
        ((5, 2, 3, 3), 5, 18),
        ((5, 7, 1, 1), 5, 7),
    ],
)
def test_complete_bipartite_graph(shape, m, n):
    gap = spectral_gap(torch.ones(shape, dtype=torch.bool))
    assert gap.first == pytest.approx(sqrt(m * n), rel=1e-5)
    assert gap.second == pytest.approx(0, abs=1e-5)
    assert gap.bound == pytest.approx(sqrt(m - 1) + sqrt(n - 1))
    assert gap.excess == pytest.approx(gap.bound, abs=1e-5)


def test_degrees_are_means_and_the_bound_takes_none_below_one():
    # Three edges in 2 x 6: rows have 1.5 on average, columns 0.5.
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[0, 0] = mask[0, 1] = mask[1, 2] = True
    assert spectral_gap(mask).bound == pytest.approx(sqrt(0.5))


def test_a_nan_outside_the_mask_plays_no_part():
    weight = torch.diag(torch.tensor([3.0, 2.0]))
    weight[0, 1] = float('nan')
    gap = spectral_gap(torch.eye(2).bool(), weight)
    assert (gap.first, gap.second) == pytest.approx((3, 2))
    # The bound stays that of the graph.
    assert gap.bound == 0


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('shape', [(6, 11), (8, 3, 3, 3)])
@pytest.mark.parametrize('weighted', [False, True])
def test_against_eigenvalues(seed, shape, weighted):
    # Singular values are the roots of the eigenvalues of A A^T.
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape, generator=generator) < 0.4
    weight = torch.randn(shape, generator=generator) if weighted else None
    matrix = mask.flatten(1).double().numpy()
    if weighted:
        matrix = matrix * np.abs(weight.flatten(1).double().numpy())
    values = np.sqrt(np.abs(np.linalg.eigvalsh(matrix @ matrix.T)))[::-1]
    gap = spectral_gap(mask, weight)
    assert gap.first == pytest.approx(values[0], rel=1e-4)
    assert gap.second == pytest.approx(values[1], rel=1e-4)


@pytest.mark.parametrize('shape', [(1, 9), (9, 1), (4, 1, 1, 1)])
def test_a_layer_without_a_second_value_is_refused(shape):
    with pytest.raises(ValueError, match='at least 2 x 2; got'):
        spectral_gap(torch.ones(shape, dtype=torch.bool))
