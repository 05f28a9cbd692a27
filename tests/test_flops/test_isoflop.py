import random

import pytest

from sift_mm.flops.isoflop import (
    check_sparsity,
    doped_rank,
    expansion,
    factorized_rank,
    inner_expansion,
    parallel_branches,
    solve_sparsity,
    spread_ranks,
    wide_width,
)


@pytest.mark.parametrize(
    'sparsity', [-0.1, 1, 1.0, 90, float('nan'), True, False, '0.5', None]
)
@pytest.mark.parametrize(
    'function',
    [
        check_sparsity,
        expansion,
        parallel_branches,
        lambda s: wide_width(64, s),
        lambda s: factorized_rank(9, 9, s),
        lambda s: doped_rank(9, 9, s),
    ],
)
def test_any_other_sparsity_is_refused_and_named(function, sparsity):
    with pytest.raises(ValueError, match=r'number in \[0, 1\).*got ') as e:
        function(sparsity)
    assert repr(sparsity) in str(e.value)


# 1 / (1 - s), whole numbers without the last bit's noise.
@pytest.mark.parametrize(
    'sparsity, expected',
    [
        (0, 1.0),
        (0.5, 2.0),
        (0.75, 4.0),
        (0.9, 10.0),
        (0.95, 20.0),
        (0.99, 100.0),
        (0.6, 2.5),
    ],
)
def test_expansion(sparsity, expected):
    assert expansion(sparsity) == expected


@pytest.mark.parametrize('base', [1, 16, 64, 80])
@pytest.mark.parametrize('percent', range(0, 100, 7))
def test_wide_width_is_the_widest_within_the_flops(base, percent):
    # In whole numbers: width^2 (1 - s) <= base^2 < (width + 1)^2 (1 - s).
    width = wide_width(base, percent / 100)
    assert width**2 * (100 - percent) <= 100 * base**2
    assert (width + 1) ** 2 * (100 - percent) > 100 * base**2


# 1 / (1 - s) to the nearest whole number; 2.5 up.
@pytest.mark.parametrize(
    'sparsity, expected',
    [(0.5, 2), (0.75, 4), (0.9, 10), (0.99, 100), (0.6, 3), (0.35, 2)],
)
def test_parallel_branches(sparsity, expected):
    assert parallel_branches(sparsity) == expected


# A 3 x 3 convolution of 64 to 64 channels: 576 * 64 / (576 + 64) = 57.6.
@pytest.mark.parametrize(
    'sparsity, sparse, expected',
    [
        (0.5, 'both', 116),  # 115.2
        (0.75, 'both', 231),  # 230.4
        (0.9, 'both', 576),  # 576, whole but for the last bit
        (0.75, 'u', 178),  # 36864 / (144 + 64) = 177.2
        (0.75, 'none', 58),
    ],
)
def test_factorized_rank(sparsity, sparse, expected):
    assert factorized_rank(576, 64, sparsity, sparse) == expected


def test_factorized_rank_of_a_wide_layer_is_that_of_the_dense_flops():
    # 36864 MACs over 1152 + 128 weights a rank: 28.8.
    assert factorized_rank(1152, 128, 0.75, 'none', cost=36864) == 29
    assert factorized_rank(1152, 128, 0.75, 'none', 36864, multiple=16) == 32


# 57.6 s, rounded down.
@pytest.mark.parametrize(
    'sparsity, expected', [(0.5, 28), (0.75, 43), (0.9, 51)]
)
def test_doped_rank(sparsity, expected):
    assert doped_rank(576, 64, sparsity) == expected
    assert doped_rank(576, 64, sparsity, multiple=8) == expected // 8 * 8


@pytest.mark.parametrize('function', [factorized_rank, doped_rank])
def test_random_layers_cost_what_rounding_allows(function):
    seed = random.randrange(10**6)
    print(f'seed {seed}')
    draw = random.Random(seed)
    for _ in range(200):
        fan_in, fan_out = draw.randint(8, 5000), draw.randint(8, 600)
        s = draw.uniform(0.3, 0.95)
        rank = function(fan_in, fan_out, s)
        one = fan_in + fan_out
        if function is factorized_rank:
            over = (1 - s) * rank * one - fan_in * fan_out
            assert -1e-3 < over < (1 - s) * one
        else:
            under = s * fan_in * fan_out - rank * one
            assert -1e-3 < under < one


# (1 - s) (k edge + k k inner) = edge + inner.
@pytest.mark.parametrize(
    'edge, inner, expected', [(5, 0, 4), (0, 5, 2), (2, 1, 13**0.5 - 1)]
)
def test_inner_expansion(edge, inner, expected):
    assert inner_expansion(edge, inner, 0.75) == pytest.approx(expected)
    assert inner_expansion(edge, inner, 0) == pytest.approx(1)


def test_inner_expansion_with_a_depthwise_convolution():
    # (1 - 0.75) 2 k + k = 2 + 1: k = 2.
    assert inner_expansion(2, 0, 0.75, depthwise=1) == pytest.approx(2)
    # (1 - 0.75) (k + k k) + k = 1 + 1 + 1: k k + 5 k - 12 = 0.
    k = inner_expansion(1, 1, 0.75, depthwise=1)
    assert k * k + 5 * k - 12 == pytest.approx(0)


def test_what_rounding_adds_is_taken_from_the_next_rank():
    # 2.6 is 3; 2.6 - 0.4 = 2.2 is 2; 2.6 + 0.2 = 2.8 is 3.
    exact = dict.fromkeys('abc', 2.6)
    assert spread_ranks(exact, dict.fromkeys('abc', 10)) == dict(a=3, b=2, c=3)
    # The 0.4 too much in a costs 40, which is 4 of b's ranks.
    assert spread_ranks(dict(a=2.6, b=9), dict(a=100, b=10)) == dict(a=3, b=5)
    assert spread_ranks(dict(a=0.1), dict(a=1), multiple=8) == dict(a=8)


def test_solve_sparsity_of_a_line_takes_one_chord():
    asked = []

    # 30 dense + 100 (1 - s) = 80 at s = 0.5.
    def cost(s):
        asked.append(s)
        return 30 + 100 * (1 - s)

    assert solve_sparsity(cost, 80) == pytest.approx(0.5, abs=1e-12)
    assert len(asked) == 3
    assert solve_sparsity(cost, 130) == 0  # Dense it has the budget.


@pytest.mark.parametrize('budget', [5, 9.5, 100, 900])
def test_solve_sparsity_of_a_steep_bend(budget):
    def cost(s):
        return 1000 - 990 * min(s / 0.01, 1) - 9 * s

    assert cost(solve_sparsity(cost, budget)) == pytest.approx(budget)


def test_solve_sparsity_of_a_jump_does_not_guess():
    with pytest.raises(ValueError, match='fall steadily'):
        solve_sparsity(lambda s: 100 if s < 0.5 else 10, 50)


@pytest.mark.parametrize('budget, nearest', [(20, '1.5000'), (150, '0.8667')])
def test_a_budget_out_of_reach_is_an_error_with_the_nearest(budget, nearest):
    with pytest.raises(
        ValueError,
        match=f'between 30 and 130 FLOPs.*{budget}.'
        f'*nearest that it can have is {nearest}',
    ):
        solve_sparsity(lambda s: 30 + 100 * (1 - s), budget)
