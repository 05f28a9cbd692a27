"""Products of single sparse layers, and comparisons in turns."""

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from masked_step import timed  # type: ignore[import-not-found]
from torch import Tensor

from sift_mm.kernels import Geometry, make_pattern, sparse_conv2d_fused
from sift_mm.kernels.ops import input_gradient, weight_gradient
from sift_mm.sparsity import Block

#: Channels in and out, height and width of the input, kernel, stride.
LAYERS = [
    (64, 64, 56, 3, 1),
    (128, 128, 28, 3, 1),
    (256, 256, 14, 3, 1),
    (512, 512, 7, 3, 1),
    (64, 128, 56, 3, 2),
    (256, 512, 14, 3, 2),
    (64, 128, 56, 1, 2),
    (256, 512, 14, 1, 2),
    (64, 256, 56, 1, 1),
    (256, 64, 56, 1, 1),
    (1024, 256, 14, 1, 1),
    (512, 2048, 7, 1, 1),
]


class Row(NamedTuple):
    """Result of one comparison: time of ``what`` over time of ``over``."""

    what: str
    sparsity: float
    over: str
    ratio: float
    quartiles: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.quartiles
        return (
            f'{self.what:44} {self.sparsity:<5} {self.over:28}'
            f'{self.ratio:6.2f}  {low:.2f} to {high:.2f}'
        )


def compare(
    what: str,
    sparsity: float,
    run: Callable[[], object],
    others: dict[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[Callable[[], object]], float] = timed,
) -> Iterator[Row]:
    """Time a function against each alternative, in turns of two.

    Spinning threads of one runtime then do not disturb other comparisons.
    """
    for name, other in others.items():
        run(), other()  # warm up
        ratios = [clock(run) / clock(other) for _ in range(rounds)]
        low, middle, high = statistics.quantiles(
            ratios, n=4, method='inclusive'
        )
        yield Row(what, sparsity, name, middle, (low, high))


def random_mask(shape: tuple[int, ...], active: int) -> Tensor:
    """Draw a mask with an exact number of active weights."""
    mask = torch.zeros(torch.Size(shape).numel(), dtype=torch.bool)
    mask[torch.randperm(mask.numel())[:active]] = True
    return mask.view(shape)


def block_mask(shape: tuple[int, ...], active: int) -> Tensor:
    """Draw a mask of Block(2), with the next number that it can have."""
    block = Block(2)
    return block.first(torch.rand(shape), block.fit(shape, active))


def sparse_forward(
    x: Tensor, weight: Tensor, mask: Tensor, stride: int
) -> tuple[Callable[[], Tensor], Any, Any]:
    """Return the sparse layer, its pattern and its geometry's numbers."""
    size, pad = weight.shape[-1], weight.shape[-1] // 2
    geometry = Geometry.of((size,) * 2, (stride,) * 2, (pad,) * 4)
    pattern, numbers = make_pattern(mask, geometry), geometry.numbers()
    values = weight.view(-1)[pattern[2].long()]
    fixed = (None, None, False, pattern[:3], numbers, len(weight))
    return partial(sparse_conv2d_fused, x, values, *fixed), pattern, numbers


def sparse_products(
    x: Tensor, weight: Tensor, mask: Tensor, stride: int
) -> dict[str, Callable[[], Tensor]]:
    """Return the three products of a sparse layer."""
    forward, pattern, numbers = sparse_forward(x, weight, mask, stride)
    layer = torch.randn_like(forward()), x, weight, pattern, numbers
    return {
        'forward': forward,
        'input gradient': partial(input_gradient, *layer),
        'weight gradient': partial(weight_gradient, *layer),
    }
