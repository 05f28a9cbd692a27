"""The arithmetic of Sparse-IFT: family and sparsity to larger layers.

A dense layer is replaced by a larger one whose weights are sparse, so that
the FLOPs stay what they were. How much larger follows from one number, the
sparsity ``s`` (Sparse-IFT, section 3). This module imports nothing of the
project and can be used from a config file.
"""

import math
from collections.abc import Callable

FAMILIES = ('wide', )


def check_sparsity(sparsity: float) -> None:
    """Refuse a sparsity outside [0, 1).

    Raises:
        ValueError: If ``sparsity`` is not a number in [0, 1).
    """
    if (isinstance(sparsity, bool) or not isinstance(sparsity, (int, float))
            or not 0 <= sparsity < 1):
        raise ValueError(
            f'sparsity is the share of weights that are zero, a number in '
            f'[0, 1); got {sparsity!r}.')


def check_family(family: str | None) -> None:
    """Refuse a family that is not implemented.

    Raises:
        ValueError: If ``family`` is neither None nor one of ``FAMILIES``.
    """
    if family is not None and family not in FAMILIES:
        raise ValueError(f'Unknown family {family!r}; the families are '
                         f'{", ".join(map(repr, FAMILIES))}, and None for '
                         'the dense network.')


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

    Args:
        base_width (int): Width of the dense network, in channels.
        sparsity (float): Share of zero weights, in [0, 1).

    Returns:
        int: The width of the sparse network, at least ``base_width``.

    Raises:
        ValueError: If ``sparsity`` is outside [0, 1).
    """
    # The small term keeps a product that is a whole number but for floating
    # point from being rounded down past it.
    return int(base_width * math.sqrt(expansion(sparsity)) + 1e-9)


def solve_sparsity(cost: Callable[[float], float],
                   budget: float,
                   tolerance: float = 1e-7) -> float:
    """The sparsity at which a network costs its budget.

    Stem and head grow with a Sparse Wide network and stay dense, so at the
    nominal sparsity the network costs more than the dense one. ``cost`` has
    to fall as the sparsity grows; bisection makes no other assumption, so
    that one solver serves every distribution (ERK caps layers at dense,
    which bends the line that it is for a uniform one).

    Args:
        cost (Callable): FLOPs of the network at a sparsity.
        budget (float): FLOPs to be met, in the unit of ``cost``.
        tolerance (float): Absolute error allowed in the sparsity.

    Returns:
        float: The sparsity, in [0, 1).

    Raises:
        ValueError: If no sparsity meets the budget.
    """
    low, high = 0.0, 1 - tolerance
    if cost(low) <= budget:
        return low
    if cost(high) > budget:
        raise ValueError(
            f'Even with all masked weights removed the network costs '
            f'{cost(high):.4g} FLOPs, more than the budget of {budget:.4g}; '
            "choose a smaller sparsity (a narrower network) or "
            "flops='nominal'.")
    while high - low > tolerance:
        middle = (low + high) / 2
        if cost(middle) > budget:
            low = middle
        else:
            high = middle
    return high
