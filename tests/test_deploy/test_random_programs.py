"""Random programs on sparse kernels against themselves executed densely."""

import os
import random

import torch
from torch import Tensor

from helpers.random_programs import (
    change_later,
    difference,
    inputs,
    random_network,
    run_program,
)
from sift_mm.deploy import to_sparse
from sift_mm.deploy.sparse_layers import SparseConv2d
from sift_mm.errors import UserError

CASES = int(os.environ.get('SIFT_MM_CASES', 400))


def off(expected: list[Tensor] | None, found: list[Tensor] | None) -> float:
    """Return the difference; 1 if PyTorch refuses one of both."""
    if expected is None or found is None:
        return float(expected is not found)
    return difference(expected, found)


@torch.no_grad()
def test_random_programs_compute_what_they_do_densely() -> None:
    first = random.SystemRandom().randrange(10**9)
    fused = sparse_layers = 0
    for seed in range(first, first + CASES):
        dense = random_network(seed).eval()
        try:
            sparse = to_sparse(dense, execution='sparse')
        except UserError as error:  # One small layer may be too dense.
            assert 'gains nothing' in str(error)
            continue
        what = f'random_network({seed})\n{dense.text}{sparse.sparse_report}'
        given = inputs()
        expected = run_program(dense, given)
        error = off(expected, run_program(sparse, given))
        assert error < 1e-4, f'{what}: {error}'
        fused += len(sparse.sparse_report.fused)
        sparse_layers += sum(
            isinstance(layer, SparseConv2d) for layer in sparse.modules()
        )
        for network in (dense, sparse):
            change_later(network, seed)
        expected = run_program(dense, given)
        error = off(expected, run_program(sparse, given))
        assert error < 1e-4, f'{what}: {error} after change_later'
    # Else nothing was tried.
    assert fused > CASES / 2 and sparse_layers > CASES
