import pytest

from sift_mm.isoflop import (
    check_family,
    check_sparsity,
    expansion,
    solve_sparsity,
    wide_width,
)


@pytest.mark.parametrize('sparsity', [0, 0.0, 0.5, 0.999])
def test_a_sparsity_in_range_is_accepted(sparsity):
    check_sparsity(sparsity)


@pytest.mark.parametrize(
    'sparsity', [-0.1, 1, 1.0, 90, float('nan'), True, False, '0.5', None])
@pytest.mark.parametrize('function', [check_sparsity, expansion,
                                      lambda s: wide_width(64, s)])
def test_any_other_sparsity_is_refused_and_named(function, sparsity):
    with pytest.raises(ValueError, match=r'number in \[0, 1\).*got ') as e:
        function(sparsity)
    assert repr(sparsity) in str(e.value)


def test_family():
    check_family(None)
    check_family('wide')
    with pytest.raises(ValueError, match="'Wide'.*families.*'wide'.*None"):
        check_family('Wide')


# 1 / (1 - s), whole numbers without the last bit's noise.
@pytest.mark.parametrize('sparsity, expected', [
    (0, 1.0), (0.5, 2.0), (0.75, 4.0), (0.9, 10.0), (0.95, 20.0),
    (0.99, 100.0), (0.6, 2.5)])
def test_expansion(sparsity, expected):
    if expected.is_integer():
        assert expansion(sparsity) == expected
    else:
        assert expansion(sparsity) == pytest.approx(expected, rel=1e-12)


# 64 sqrt(2) = 90.5, 64 * 2, 64 sqrt(10) = 202.4; 64 / sqrt(0.4) = 101.2;
# 32 sqrt(4) and 32 sqrt(100) are whole.
@pytest.mark.parametrize('base, sparsity, expected', [
    (64, 0, 64), (64, 0.5, 90), (64, 0.75, 128), (64, 0.9, 202),
    (64, 0.6, 101), (32, 0.75, 64), (32, 0.99, 320)])
def test_wide_width(base, sparsity, expected):
    assert wide_width(base, sparsity) == expected


@pytest.mark.parametrize('base', [1, 16, 64, 80])
@pytest.mark.parametrize('percent', range(0, 100, 7))
def test_wide_width_is_the_widest_within_the_flops(base, percent):
    # In whole numbers: width^2 (1 - s) <= base^2 < (width + 1)^2 (1 - s).
    width = wide_width(base, percent / 100)
    assert width**2 * (100 - percent) <= 100 * base**2
    assert (width + 1)**2 * (100 - percent) > 100 * base**2


def test_solve_sparsity_of_a_line():
    # 30 dense + 100 (1 - s) = 80 at s = 0.5.
    assert solve_sparsity(lambda s: 30 + 100 * (1 - s),
                          80) == pytest.approx(0.5, abs=2e-7)


def test_solve_sparsity_of_a_bent_line():
    # One layer of 100 is capped at dense below s = 0.75, another of 300
    # takes 200 (1 - s) there: 100 + 200 (1 - s) = 200 at s = 0.5.
    def cost(s):
        return min(100, 400 * (1 - s)) + 200 * (1 - s)

    assert solve_sparsity(cost, 200) == pytest.approx(0.5, abs=2e-7)
    # Past the bend: 600 (1 - s) = 60 at s = 0.9.
    assert solve_sparsity(cost, 60) == pytest.approx(0.9, abs=2e-7)


@pytest.mark.parametrize('tolerance', [1e-2, 1e-4, 1e-7])
def test_solve_sparsity_ends_on_the_cheap_side(tolerance):
    # A staircase, as exact counts make it.
    def cost(s):
        return round(1000 * (1 - s))

    s = solve_sparsity(cost, 250, tolerance)
    assert cost(s) <= 250 < cost(s - tolerance)


def test_solve_sparsity_leaves_a_cheap_network_dense():
    assert solve_sparsity(lambda s: 100 * (1 - s), 100) == 0


def test_a_budget_below_the_dense_part_is_an_error():
    with pytest.raises(ValueError, match='all masked weights removed.* 30 '
                       'FLOPs.*budget of 20.*smaller sparsity'):
        solve_sparsity(lambda s: 30 + 100 * (1 - s), 20)
