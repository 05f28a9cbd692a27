"""Random programs in training: sparse execution against dense."""

import copy
import os
import random

import torch
from torch import Tensor, nn

from helpers.random_programs import (
    difference,
    inputs,
    random_network,
    run_program,
)
from sift_mm.sparsity import MaskSet, SparseExecution

CASES = int(os.environ.get('SIFT_MM_CASES', 240))


def masks_of(network: nn.Module) -> MaskSet:
    """Return the nonzeros of the layers as masks."""
    weights = {
        f'{name}.weight': layer.weight
        for name, layer in network.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))
    }
    return MaskSet(weights, {n: w.detach() != 0 for n, w in weights.items()})


def step(network: nn.Module, seed: int) -> list[dict[str, Tensor]] | None:
    """Return values and gradients of a step, or None if PyTorch refuses."""
    torch.default_generator.manual_seed(seed)
    dtype = next(network.parameters()).dtype
    given = tuple(x.to(dtype).requires_grad_() for x in inputs())
    network.zero_grad()
    found = run_program(network, given)
    if found is None:
        return None
    try:
        sum(out.square().mean() for out in found).backward()
    except RuntimeError:
        return None
    masks = masks_of(network)
    values = {f'output {i}': out.detach() for i, out in enumerate(found)}
    leaves = dict(network.named_parameters())
    leaves |= {f'input {i}': x for i, x in enumerate(given)}
    return [
        values | dict(network.named_buffers()),
        {
            name: leaf.grad * masks[name] if name in masks else leaf.grad
            for name, leaf in leaves.items()
            if leaf.grad is not None
        },
    ]


def is_rounding(
    dense: nn.Module,
    seed: int,
    values: list[dict[str, Tensor]],
    others: list[dict[str, Tensor]],
) -> bool:
    """Compare with double precision: a dead channel has gradients of noise.

    Batch norm divides by its standard deviation, nearly 0.
    """
    exact = step(copy.deepcopy(dense).double(), seed)
    for right, one, other in zip(exact, values, others, strict=True):
        errors = [
            difference(right.values(), [found[name] for name in right])
            for found in (one, other)
        ]
        if errors[1] > max(1e-3, 10 * errors[0]):
            return False
    return True


def test_random_programs_train_as_they_do_densely() -> None:
    first, refused = random.SystemRandom().randrange(10**9), 0
    for seed in range(first, first + CASES):
        dense = random_network(seed, learns=True).train()
        fresh = copy.deepcopy(dense)
        sparse = copy.deepcopy(dense)
        execution = SparseExecution(sparse, masks_of(sparse), 'sparse')
        what = f'random_network({seed}, learns=True)\n{dense.text}'
        expected, found = step(dense, seed), step(sparse, seed)
        execution.detach()
        refused += expected is None
        if expected is None:  # The kernels may save less for the gradients.
            continue
        assert found is not None, f'{what}: refused on kernels alone'
        for one, other in zip(expected, found, strict=True):
            assert one.keys() == other.keys(), what
            error = difference(one.values(), [other[name] for name in one])
            assert error < 1e-3 or is_rounding(fresh, seed, expected, found), (
                f'{what}: {error}'
            )
    assert refused < CASES / 2  # Else little was tried.
