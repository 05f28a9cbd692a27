"""Timing of a layer's products, sparse against dense."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from .dense_products import dense_forward, dense_gradients
from .geometry import Geometry
from .memory_format import in_format_of
from .ops import input_gradient, sparse_conv2d, weight_gradient

#: A product runs sparse if it takes less than this share of the dense time.
MARGIN = 0.95
#: Multiplications below which a dense product takes no longer than the call of
#: an operator: sparse execution cannot gain, and nothing is timed.
SMALLEST = 4_000_000
#: Multiplications of a timing; a larger batch is cut.
ENOUGH = 8_000_000_000
#: Number of dense and sparse runs; the fastest run counts.
PAIRS = 3
#: Seconds after which no further pair of runs starts.
SECONDS = 0.25


@dataclass(frozen=True)
class Timing:
    """Seconds of each of ``PRODUCTS``.

    Args:
        dense: Seconds in PyTorch.
        sparse: Seconds in the sparse operators.
    """

    dense: tuple[float, ...]
    sparse: tuple[float, ...]

    @property
    def choice(self) -> tuple[bool, ...]:
        """True for each product that should run sparse."""
        return tuple(
            sparse < MARGIN * dense
            for dense, sparse in zip(self.dense, self.sparse, strict=True)
        )


def multiplications(x: Tensor, weight: Tensor, geometry: Geometry) -> int:
    """Count the multiplications of one dense product."""
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
    transposed: bool = False,
) -> Timing:
    """Time a layer's products on its input, sparse and dense in turns.

    No random number is drawn, and no argument changes.

    Args:
        x: Input of the layer.
        weight: Masked weight.
        bias: Bias, or None.
        pattern: Pattern of the mask.
        geometry: Geometry of the layer.
        transposed: True for a weight of shape (in, out).

    Returns:
        Seconds for the whole input, scaled up if the batch was cut.
    """
    work = multiplications(x, weight, geometry)
    images = min(len(x), -(-len(x) * ENOUGH // work))
    share = len(x) / images
    x, numbers = x[:images], geometry.numbers()
    layer = x, weight, bias, geometry, transposed
    grad = dense_forward(*layer)
    fixed = x, weight, pattern, numbers, transposed

    def dense(of_input: bool, of_weight: bool) -> object:
        operands = grad, x, weight, geometry
        return dense_gradients(*operands, of_input, of_weight, transposed)

    def forward() -> Tensor:
        rest = None, False, transposed
        out = sparse_conv2d(x, weight, bias, pattern, numbers, *rest)
        return in_format_of(out, x, weight)

    pairs: list[tuple[Callable[[], object], Callable[[], object]]] = [
        (lambda: dense_forward(*layer), forward),
        (lambda: dense(True, False), lambda: input_gradient(grad, *fixed)),
        (lambda: dense(False, True), lambda: weight_gradient(grad, *fixed)),
    ]
    seconds = [fastest(*pair) for pair in pairs]
    return Timing(
        dense=tuple(share * dense for dense, _ in seconds),
        sparse=tuple(share * sparse for _, sparse in seconds),
    )


def fastest(
    dense: Callable[[], object], sparse: Callable[[], object]
) -> tuple[float, float]:
    """Return the seconds of the fastest dense and the fastest sparse run."""
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
