"""Sparse convolutions and their gradients against float64."""

import os
import random

import pytest
import torch

from helpers.random_convolutions import Case, check, pattern_of, random_case
from sift_mm.kernels.pattern import forward_layout

CASES, AT_ONCE = int(os.environ.get('SIFT_MM_CASES', 800)), 100


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
