"""Which of a layer's products are faster sparse, by the clock."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from .dense_products import dense_forward, dense_gradients
from .geometry import Geometry
from .ops import input_gradient, sparse_conv2d, weight_gradient

#: Of the dense time: what sparse execution has to come below.
MARGIN = 0.95
#: Multiplications of the dense product below which it takes no longer than
#: calling an operator does: nothing can be won, and nothing is timed.
SMALLEST = 4_000_000
#: Multiplications that are enough for a timing; more images are left out.
ENOUGH = 8_000_000_000
#: Pairs of runs, of which the fastest count, and seconds after which no
#: further pair is begun.
PAIRS = 3
SECONDS = 0.25


@dataclass(frozen=True)
class Timing:
    """Seconds of each of ``PRODUCTS``.

    Args:
        dense: As PyTorch runs them.
        sparse: As the sparse operators do.
    """

    dense: tuple[float, ...]
    sparse: tuple[float, ...]

    @property
    def ways(self) -> tuple[bool, ...]:
        """For each product whether it is to run sparse."""
        return tuple(
            sparse < MARGIN * dense
            for dense, sparse in zip(self.dense, self.sparse, strict=True)
        )


def multiplications(x: Tensor, weight: Tensor, geometry: Geometry) -> int:
    """Of one dense product."""
    pixels = x.shape[0]
    if x.ndim == 4:
        height, width = geometry.out_size(x.shape[2], x.shape[3])
        pixels *= height * width
    return pixels * weight.numel()


@torch.no_grad()
def time_products(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pattern: Sequence[Tensor],
    geometry: Geometry,
) -> Timing:
    """Time a layer's products, sparse and dense in turn, at real numbers.

    Draws no random number and changes none of its arguments.

    Args:
        x: An input.
        weight: The masked weight.
        bias: The bias, or None.
        pattern: Of the mask.
        geometry: Of the layer.

    Returns:
        Seconds of the whole input.
    """
    work = multiplications(x, weight, geometry)
    images = min(len(x), -(-len(x) * ENOUGH // work))
    share = len(x) / images
    x, numbers = x[:images], geometry.numbers()
    grad = dense_forward(x, weight, bias, geometry)
    layer = x, weight, pattern, numbers
    pairs: list[tuple[Callable[[], object], Callable[[], object]]] = [
        (
            lambda: dense_forward(x, weight, bias, geometry),
            lambda: sparse_conv2d(x, weight, bias, pattern, numbers),
        ),
        (
            lambda: dense_gradients(grad, x, weight, geometry, True, False),
            lambda: input_gradient(grad, *layer),
        ),
        (
            lambda: dense_gradients(grad, x, weight, geometry, False, True),
            lambda: weight_gradient(grad, *layer),
        ),
    ]
    seconds = [fastest(*pair) for pair in pairs]
    return Timing(
        dense=tuple(share * dense for dense, _ in seconds),
        sparse=tuple(share * sparse for _, sparse in seconds),
    )


def fastest(
    dense: Callable[[], object], sparse: Callable[[], object]
) -> tuple[float, float]:
    """Return the seconds of the fastest run of each."""
    best = [float('inf')] * 2
    start = perf_counter()
    for _ in range(PAIRS):
        for i, run in enumerate((dense, sparse)):
            begin = perf_counter()
            run()
            best[i] = min(best[i], perf_counter() - begin)
        if perf_counter() - start > SECONDS:
            break
    return best[0], best[1]
