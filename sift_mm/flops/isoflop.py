"""Arithmetic of Sparse-IFT: sizes of sparse layers at equal FLOPs.

All sizes follow from one number, the sparsity ``s`` (Sparse-IFT, section 3).
"""

import math
from collections.abc import Callable, Mapping

from sift_mm.errors import UserError
from sift_mm.validation import Sparsity, read

# Modules between the two inner layers, or behind each branch.
INNER = ('none', 'norm', 'norm_act')
# Masked factors of V(U x).
SPARSE_FACTORS = ('both', 'u', 'none')
# Largest relative error of matched FLOPs.
TOLERANCE = 1e-9


def check_sparsity(sparsity: float) -> None:
    """Raise a ValueError if a sparsity is not a number in [0, 1)."""
    read('sparsity', sparsity, Sparsity)


def expansion(sparsity: float) -> float:
    """Return the growth of a layer's weights at equal FLOPs, 1 / (1 - s).

    Floating point turns 1 / (1 - 0.9) into 10.000000000000002; values so close
    to a whole number are rounded to it.

    Raises:
        ValueError: If ``sparsity`` is outside [0, 1).
    """
    check_sparsity(sparsity)
    exact = 1 / (1 - sparsity)
    whole = round(exact)
    return float(whole) if math.isclose(exact, whole, rel_tol=1e-9) else exact


def wide_width(base_width: int, sparsity: float) -> int:
    """Return the width of a Sparse Wide network's first stage, in channels.

    Both widths of a layer grow by ``k = sqrt(1 / (1 - s))``, rounded down as
    in the authors' networks: 64 becomes 90, 128 and 202 at 0.5, 0.75 and 0.9.
    Later stages are multiples of this number (2, 4, 8).

    Raises:
        ValueError: If ``sparsity`` is outside [0, 1).
    """
    # Floating point may put a whole number slightly below itself.
    return int(base_width * math.sqrt(expansion(sparsity)) + 1e-9)


def parallel_branches(sparsity: float) -> int:
    """Return the number of branches of a Sparse Parallel layer, 1 / (1 - s).

    It is rounded to the nearest whole number, 2.5 up.

    Raises:
        ValueError: If there is a single branch, which is the dense layer.
    """
    branches = math.floor(expansion(sparsity) + 0.5)
    if branches < 2:
        raise UserError(
            f'At sparsity {sparsity} a Sparse Parallel layer has 1 / (1 - s) '
            f'= {expansion(sparsity):.3g} branches, rounded to one, which is '
            'the dense layer; choose a sparsity of 1/3 or more.'
        )
    return branches


def factorized_rank(
    fan_in: int,
    fan_out: int,
    sparsity: float,
    sparse: str = 'both',
    cost: float | None = None,
    multiple: int = 1,
) -> int:
    """Return the inner width of a factorized layer V(U x), from its FLOPs.

    ``r = cost / (d_U fan_in + d_V fan_out)``, rounded up, where d is 1 - s
    for a sparse factor and 1 for a dense one. With two sparse factors and the
    dense layer's cost, it is the paper's
    ``fan_in fan_out / (fan_in + fan_out) / (1 - s)``.

    Args:
        fan_in (int): Inputs of one output; ``k * k * d_in`` for a
            convolution.
        fan_out (int): Outputs, d_out.
        sparsity (float): Share of zero weights, in [0, 1).
        sparse (str): Masked factors: 'both', 'u' or 'none'.
        cost (float, optional): MACs of one position; None is the dense
            layer's, ``fan_in * fan_out``.
        multiple (int): Divisor of the rank, in channels.

    Raises:
        ValueError: If the sparsity is outside [0, 1).
    """
    check_sparsity(sparsity)
    density_u, density_v = factor_densities(sparsity, sparse)
    cost = fan_in * fan_out if cost is None else cost
    exact = cost / (density_u * fan_in + density_v * fan_out)
    return max(1, math.ceil(exact / multiple - 1e-9)) * multiple


def spread_ranks(
    exact: Mapping[str, float], costs: Mapping[str, float], multiple: int = 1
) -> dict[str, int]:
    """Round ranks to whole ones of the same FLOPs in total.

    The rounding error of one layer is taken from the next. Ranks are
    multiples of ``multiple``; ``costs`` has each layer's FLOPs of one rank.
    """
    ranks, left = {}, 0.0
    for name, rank in exact.items():
        wanted = (rank + left / costs[name]) / multiple
        ranks[name] = max(1, round(wanted)) * multiple
        left += (rank - ranks[name]) * costs[name]
    return ranks


def factor_densities(sparsity: float, sparse: str) -> tuple[float, float]:
    """Return the densities of U and V.

    Raises:
        ValueError: If ``sparse`` is none of ``SPARSE_FACTORS``.
    """
    if sparse not in SPARSE_FACTORS:
        raise UserError(
            'sparse_factors says which factors carry masks, one '
            f'of {SPARSE_FACTORS}; got {sparse!r}.'
        )
    return (
        1 - sparsity if sparse != 'none' else 1.0,
        1 - sparsity if sparse == 'both' else 1.0,
    )


def doped_rank(
    fan_in: int, fan_out: int, sparsity: float, multiple: int = 1
) -> int:
    """Return the rank of the dense part of a Sparse Doped layer.

    In W x + V(U x), ``r = s fan_in fan_out / (fan_in + fan_out)``, rounded
    down, costs the FLOPs that the mask of W saves. Arguments are those of
    :func:`factorized_rank`.

    Raises:
        ValueError: If the rank is 0.
    """
    check_sparsity(sparsity)
    exact = sparsity * fan_in * fan_out / (fan_in + fan_out)
    rank = math.floor(exact / multiple + 1e-9) * multiple
    if not rank:
        raise UserError(
            f'A Sparse Doped layer of {fan_in} inputs and {fan_out} outputs '
            f'has rank {exact:.3g} at sparsity {sparsity}, less than '
            f'{multiple}; choose a larger sparsity or leave the layer out.'
        )
    return rank


def inner_expansion(
    edge: float, inner: float, sparsity: float, depthwise: float = 0
) -> float:
    """Return the growth k of a chain's inner widths at equal FLOPs.

    A chain keeps its first input and last output. The two layers at its ends
    cost k times as much, inner layers k * k times, under masks (1 - s) of
    that; depthwise convolutions between stay dense and cost k times as much:
    ``(1 - s) (k edge + k k inner) + k depthwise = edge + inner + depthwise``.
    For a feed-forward pair, ``inner`` is 0 and k = 1 / (1 - s).

    Args:
        edge (float): FLOPs of the two layers at the ends, in any unit.
        inner (float): FLOPs of the layers between.
        sparsity (float): Share of zero weights, in [0, 1).
        depthwise (float): FLOPs of depthwise convolutions between.
    """
    # In units of 1 - s, which keeps 1 / (1 - 0.9) a whole number.
    more = expansion(sparsity)
    linear = edge + depthwise * more
    total = (edge + inner + depthwise) * more
    return 2 * total / (linear + math.sqrt(linear**2 + 4 * inner * total))


def solve_sparsity(cost: Callable[[float], float], budget: float) -> float:
    """Return the sparsity at which a network costs its budget.

    The nominal sparsity misses the dense FLOPs: dense parts may grow (the stem
    of a Sparse Wide network) and sparse parts may not (the shortcuts of a
    Sparse Parallel one). With a uniform distribution, the cost is linear in
    the sparsity, and one chord solves it. ERK caps layers at dense, so the
    cost is piecewise linear, and the chord is repeated (regula falsi).

    Args:
        cost (Callable): FLOPs at a sparsity in [0, 1], before masks are
            rounded to whole weights.
        budget (float): FLOPs to meet, within a share of TOLERANCE.

    Raises:
        ValueError: If no sparsity meets the budget, with the nearest FLOPs.
    """
    low, high = 0.0, 1.0
    above, below = cost(low), cost(high)
    if abs(above - budget) <= TOLERANCE * budget:
        return low
    if not below < budget < above:
        nearest = below if budget <= below else above
        raise UserError(
            f'With its masks this network has between {below:.4g} and '
            f'{above:.4g} FLOPs; the budget is {budget:.4g}. The nearest '
            f'that it can have is {nearest / budget:.4f} of the budget.'
        )
    over, under = above - budget, below - budget
    side = 0
    for _ in range(200):
        middle = low + (high - low) * over / (over - under)
        found = cost(middle) - budget
        if abs(found) <= TOLERANCE * budget:
            return middle
        # Halve an end that stays twice (the Illinois rule): a steep bend would
        # keep it forever.
        if found > 0:
            low, over = middle, found
            under *= 0.5 if side > 0 else 1
            side = 1
        else:
            high, under = middle, found
            over *= 0.5 if side < 0 else 1
            side = -1
    raise UserError(
        f'No sparsity was found that meets {budget:.4g} FLOPs: '
        'the cost has to fall steadily with the sparsity.'
    )


def nearest_sparsity(cost: Callable[[float], float], budget: float) -> float:
    """Return the sparsity at which a network of whole steps is nearest.

    Args:
        cost (Callable): FLOPs at a sparsity in [0, 1], falling in steps, as a
            structure of the masks rounds active weights.
        budget (float): FLOPs to come near to.
    """
    low, high = 0.0, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        if cost(middle) > budget:
            low = middle
        else:
            high = middle
    return min(high, low, key=lambda s: abs(cost(s) - budget))
