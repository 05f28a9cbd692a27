"""The arithmetic of Sparse-IFT: family and sparsity to larger layers.

How much larger a sparse layer of the dense one's FLOPs is follows from one
number, the sparsity ``s`` (Sparse-IFT, section 3). No network is needed.
"""

import math
from collections.abc import Callable, Mapping

from sift_mm.errors import UserError
from sift_mm.validation import Sparsity, read

# What stands between the two inner layers, or behind each branch.
INNER = ('none', 'norm', 'norm_act')
# Which factors of V(U x) carry masks.
SPARSE_FACTORS = ('both', 'u', 'none')
# Relative error allowed in FLOPs that are matched.
TOLERANCE = 1e-9


def check_sparsity(sparsity: float) -> None:
    """Raise a ValueError if a sparsity is not a number in [0, 1)."""
    read('sparsity', sparsity, Sparsity)


def expansion(sparsity: float) -> float:
    """How many times more weights a layer has at equal FLOPs: 1 / (1 - s).

    Binary floating point turns 1 / (1 - 0.9) into 10.000000000000002; such a
    neighbour of a whole number is that number.

    Raises:
        ValueError: If ``sparsity`` is outside [0, 1).
    """
    check_sparsity(sparsity)
    exact = 1 / (1 - sparsity)
    whole = round(exact)
    return float(whole) if math.isclose(exact, whole, rel_tol=1e-9) else exact


def wide_width(base_width: int, sparsity: float) -> int:
    """Width of a Sparse Wide network's first stage, in channels.

    Both widths of a layer grow by ``k = sqrt(1 / (1 - s))``. Rounding is
    down, as in the authors' networks: 64 becomes 90, 128 and 202 at 0.5,
    0.75 and 0.9. The later stages are multiples of this number (2, 4, 8), so
    round once and multiply.

    Raises:
        ValueError: If ``sparsity`` is outside [0, 1).
    """
    # The small term keeps a product that is a whole number but for floating
    # point from being rounded down past it.
    return int(base_width * math.sqrt(expansion(sparsity)) + 1e-9)


def parallel_branches(sparsity: float) -> int:
    """Number of branches of a Sparse Parallel layer, 1 / (1 - s).

    The nearest whole number, 2.5 being rounded up.

    Raises:
        ValueError: If that is a single branch, which is the dense layer.
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
    """Inner width of a factorised layer V(U x), from its FLOPs.

    ``r = cost / (d_U fan_in + d_V fan_out)``, rounded up, where d is 1 - s
    for a sparse factor and 1 for a dense one. With both sparse and the cost
    of the layer itself that is the paper's
    ``fan_in fan_out / (fan_in + fan_out) / (1 - s)``.

    Args:
        fan_in (int): Inputs of one output; ``k * k * d_in`` for a
            convolution.
        fan_out (int): Outputs, d_out.
        sparsity (float): Share of zero weights, in [0, 1).
        sparse (str): Which factors carry masks: 'both', 'u' or 'none'.
        cost (float, optional): MACs of one position to be met; those of the
            dense layer, ``fan_in * fan_out``, if None.
        multiple (int): The rank, in channels, is a multiple of this.

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
    """Whole ranks whose FLOPs add up to those of the exact ones.

    What rounding adds to one layer is taken from the next. Ranks are
    multiples of ``multiple``, at least one; ``costs`` has the FLOPs that one
    more rank costs a layer.
    """
    ranks, left = {}, 0.0
    for name, rank in exact.items():
        wanted = (rank + left / costs[name]) / multiple
        ranks[name] = max(1, round(wanted)) * multiple
        left += (rank - ranks[name]) * costs[name]
    return ranks


def factor_densities(sparsity: float, sparse: str) -> tuple[float, float]:
    """Densities of U and V, of which those of ``SPARSE_FACTORS`` are sparse.

    Raises:
        ValueError: If there are no such factors.
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
    """Rank of the dense part of a Sparse Doped layer W x + V(U x).

    ``r = s fan_in fan_out / (fan_in + fan_out)``, rounded down: the low-rank
    part costs what the mask saves. Arguments as of :func:`factorized_rank`.

    Raises:
        ValueError: If the rank is 0: the layer is too small for it.
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
    """How much wider the inside of a chain of layers is at equal FLOPs.

    A chain keeps its first input and its last output. Widening all that is
    between by k, the layers at either end cost k times as much and those
    between two inner widths k * k times, under masks (1 - s) of it; depthwise
    convolutions between them stay dense and cost k times as much:
    ``(1 - s) (k edge + k k inner) + k depthwise = edge + inner + depthwise``.
    For a feed-forward pair ``inner`` is 0 and k = 1 / (1 - s). The FLOPs
    ``edge``, ``inner`` and ``depthwise`` are in any one unit.
    """
    # In units of 1 - s, which keeps 1 / (1 - 0.9) a whole number.
    more = expansion(sparsity)
    linear = edge + depthwise * more
    total = (edge + inner + depthwise) * more
    return 2 * total / (linear + math.sqrt(linear**2 + 4 * inner * total))


def solve_sparsity(cost: Callable[[float], float], budget: float) -> float:
    """The sparsity at which a network costs its budget.

    Some parts of a network grow with it and stay dense (the stem of a Sparse
    Wide one), others are sparse and do not grow (the shortcuts of a Sparse
    Parallel one), so that the nominal sparsity misses the dense FLOPs. The
    cost falls linearly with the sparsity where the distribution is uniform:
    one chord solves it. ERK caps layers at dense, which makes it a chain of
    lines; the chord is drawn anew until it holds.

    ``cost`` gives the FLOPs at a sparsity in [0, 1], before masks are rounded
    to whole weights, in the unit of ``budget``, which is met within a share
    of TOLERANCE.

    Raises:
        ValueError: If no sparsity meets the budget, with what can be met.
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
        # An end that stays twice counts for half (the Illinois rule): a
        # steep bend would hold it for good.
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
