"""Sparse convolutions and their gradients against float64."""

import random

import pytest
import torch
from torch import Tensor

from helpers.random_convolutions import (
    Case,
    pattern_of,
    random_case,
    within_rounding,
)
from sift_mm.kernels import sparse_conv2d, sparse_conv2d_fused
from sift_mm.kernels.pattern import forward_layout

CASES, AT_ONCE = 2000, 100


def check(case: Case) -> None:
    x, mask, weight = case.draw()
    pattern, numbers = pattern_of(case, mask), case.geometry.numbers()
    source = torch.Generator().manual_seed(case.seed + 1)
    bias = torch.randn(case.filters, generator=source)

    def double(tensor: Tensor) -> Tensor:
        return tensor.double().requires_grad_()

    x64, bias64 = double(x), double(bias)
    weight64 = double(weight * mask)
    exact = case.dense(x64, weight64) + bias64[:, None, None]
    grad = torch.randn(exact.shape, generator=source)
    exact.backward(grad.double())

    sizes = double(x.abs()), double((weight * mask).abs())
    total = case.dense(*sizes)
    total.backward(grad.double().abs())
    total = total.detach() + bias.double().abs()[:, None, None]
    terms = case.channels * case.kernel[0] * case.kernel[1] + 1

    for leaf in (x, weight, bias):
        leaf.requires_grad_()
    found = sparse_conv2d(x, weight, bias, pattern, numbers)
    found.backward(grad)
    within_rounding((case, 'forward'), found, exact, total, terms)
    within_rounding(
        (case, 'input gradient'),
        x.grad,
        x64.grad,
        sizes[0].grad,
        case.filters * case.kernel[0] * case.kernel[1],
    )
    # Beyond the products, threads and vectors are summed.
    products = case.images * exact.shape[2] * exact.shape[3]
    within_rounding(
        (case, 'weight gradient'),
        weight.grad,
        weight64.grad * mask,
        sizes[1].grad,
        products + 20,
    )
    within_rounding(
        (case, 'bias gradient'),
        bias.grad,
        bias64.grad,
        grad.double().abs().sum((0, 2, 3)),
        products,
    )

    # Any of bias, residual and relu; max(., 0) raises no error of rounding.
    epilogue = case.seed % 8
    residual = torch.randn(exact.shape, generator=source)
    with torch.no_grad():
        fused = sparse_conv2d_fused(
            x,
            weight.view(-1)[pattern[2]],
            bias if epilogue & 1 else None,
            residual if epilogue & 2 else None,
            bool(epilogue & 4),
            pattern[:3],
            numbers,
            case.filters,
        )
        if not epilogue & 1:
            exact = exact - bias64[:, None, None]
        if epilogue & 2:
            exact = exact + residual
            total = total + residual.double().abs()
        if epilogue & 4:
            exact = exact.relu()
    within_rounding((case, 'fused'), fused, exact, total, terms + 1)


@pytest.mark.parametrize('part', range(CASES // AT_ONCE))
def test_random_convolutions_are_exact_to_rounding(part: int) -> None:
    seed = random.randrange(10**6)
    print(f'seed {seed}, part {part}')
    source = random.Random(seed)
    for _ in range(AT_ONCE):
        check(random_case(source))


@pytest.mark.parametrize('images', [1, 8, 33])
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('kernel', [1, 3])
def test_patches_of_all_sizes(kernel: int, stride: int, images: int) -> None:
    for height, width in ((7, 7), (2, 3), (15, 5), (14, 14)):
        case = Case(
            kernel=(kernel, kernel),
            stride=(stride, stride),
            padding=(kernel // 2,) * 4,
            images=images,
            height=height,
            width=width,
            channels=12,
            filters=11,
        )
        check(case)


@pytest.mark.parametrize('kernel, stride', [(1, 1), (3, 1), (3, 2)])
def test_few_nonzeros_are_read_in_larger_blocks(kernel, stride):
    case = Case(
        kernel=(kernel, kernel),
        stride=(stride, stride),
        padding=(kernel // 2,) * 4,
        channels=250,
        filters=240,
        mask='few',
    )
    check(case)
    layout = forward_layout(case.geometry, case.channels)
    rows = pattern_of(case, case.draw()[1])[0]
    assert layout.larger.blocks < layout.blocks
    assert len(rows) == layout.larger.blocks * case.filters + 2
    dense = torch.ones(240, 250, kernel, kernel, dtype=torch.bool)
    assert len(pattern_of(case, dense)[0]) == layout.blocks * case.filters + 2
