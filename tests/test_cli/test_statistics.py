"""Statistics of runs against values worked out by hand and against scipy."""

from math import inf, isnan

import numpy as np
import pytest
from scipy import stats

from sift_mm.cli.reports.run_groups import Comparison
from sift_mm.cli.reports.statistics import (
    paired_difference,
    rank_correlation,
    summarize,
)

# t of 0.975 with 2 degrees of freedom, of printed tables.
T2 = 4.303


def test_mean_and_deviation():
    found = summarize([1.0, 2.0, 6.0])
    # Squares of -2, -1, 3 sum to 14; half of it is 7.
    assert (found.mean, found.n) == (3.0, 3)
    assert found.deviation == pytest.approx(7**0.5)
    assert summarize([4.0]).deviation == 0


def test_a_paired_difference_is_taken_seed_by_seed():
    dense = {0: 90.0, 1: 80.0, 2: 70.0, 5: 10.0}
    wide = {2: 73.0, 0: 91.0, 1: 82.0, 7: 99.0}
    found = paired_difference(wide, dense)
    assert (found.value, found.n) == (2.0, 3)  # 1, 2, 3: deviation 1.
    half = T2 / 3**0.5
    assert found.low == pytest.approx(2 - half, rel=1e-3)
    assert found.high == pytest.approx(2 + half, rel=1e-3)
    assert not found.is_clear


def test_an_interval_is_that_of_the_paired_t_test():
    rng = np.random.default_rng(3)
    a, b = rng.normal(90, 1, 5), rng.normal(88, 1, 5)
    found = paired_difference(dict(enumerate(a)), dict(enumerate(b)), 0.9)
    oracle = stats.ttest_rel(a, b).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high))
    assert found.is_clear == (not oracle.low <= 0 <= oracle.high)


def test_a_difference_of_one_pair_has_no_interval():
    found = paired_difference({1: 5.0}, {1: 4.0})
    assert (found.value, found.low, found.high) == (1.0, -inf, inf)
    assert not found.is_clear
    assert paired_difference({1: 5.0}, {2: 4.0}) is None


def test_rank_correlation():
    # Ranks differ by 1, -1, 0, 0, 0: 1 - 6 * 2 / (5 * 24) = 0.9.
    found = rank_correlation([1, 2, 3, 4, 5], [20, 10, 30, 40, 500])
    assert found.value == pytest.approx(0.9)
    # atanh(0.9) = 1.4722; 1.95996 * sqrt(1.405 / 2) = 1.6427.
    assert found.low == pytest.approx(np.tanh(1.4722 - 1.6427), abs=1e-4)
    assert found.high == pytest.approx(np.tanh(1.4722 + 1.6427), abs=1e-4)
    perfect = rank_correlation([1, 2, 3, 4], [9, 7, 5, 3])
    assert perfect.value == -1 and not perfect.is_clear


def test_the_interval_covers_the_correlation_as_often_as_it_says():
    # Normal pairs of correlation 0.5: rho = 6 / pi * arcsin(0.25).
    rho = 6 / np.pi * np.arcsin(0.25)
    rng, covered = np.random.default_rng(0), 0
    for _ in range(500):
        x = rng.normal(size=30)
        y = 0.5 * x + 0.75**0.5 * rng.normal(size=30)
        found = rank_correlation(x, y)
        covered += found.low <= rho <= found.high
    # 0.95 of 500, less and more 3 of their standard deviations, 4.9.
    assert 460 <= covered <= 490


@pytest.mark.parametrize(
    ('x', 'y'), [([1.0], [2.0]), ([1, 1, 1, 1], [1, 2, 3, 4])]
)
def test_no_correlation_of_a_constant(x, y):
    found = rank_correlation(x, y)
    assert isnan(found.value)
    assert (found.low, found.high) == (-1, 1)


def test_the_best_text_model_has_the_lowest_perplexity():
    signs = {
        metric: Comparison([], None, metric).sign
        for metric in ('text/perplexity', 'loss', 'mIoU', 'unknown')
    }
    assert list(signs.values()) == [-1, -1, 1, 1]
