"""Random convolutions, and what they are in float64.

A sum of n products is rounded n times, in whatever order and fused or not:
in float32 it is off by at most ``n u / (1 - n u)`` times the sum of the
absolute products, ``u = 2^-24``. So a kernel is right if it stays within that
of the float64 result; a wrong tap is off by whole products.
"""

import random
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sift_mm.kernels import (
    Geometry,
    make_pattern,
    pattern,
    sparse_conv2d,
    sparse_conv2d_fused,
)

UNIT = 2.0**-24


@dataclass(frozen=True)
class Case:
    """A layer, its mask and an input's size."""

    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (1, 1, 1, 1)
    dilation: tuple[int, int] = (1, 1)
    images: int = 2
    channels: int = 3
    filters: int = 4
    height: int = 9
    width: int = 8
    mask: str = 'random'
    seed: int = 0

    @property
    def geometry(self) -> Geometry:
        return Geometry.of(
            self.kernel, self.stride, self.padding, self.dilation
        )

    def dense(self, x: Tensor, weight: Tensor) -> Tensor:
        steps = dict(stride=self.stride, dilation=self.dilation)
        return F.conv2d(F.pad(x, self.padding), weight, **steps)

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Draw input, mask and weight; the weight is unmasked."""
        source = torch.Generator().manual_seed(self.seed)
        size = (self.images, self.channels, self.height, self.width)
        x = torch.randn(size, generator=source)
        weight = torch.randn(
            self.filters, self.channels, *self.kernel, generator=source
        )
        density = torch.rand((), generator=source)
        mask = torch.rand(weight.shape, generator=source) < density
        if self.mask == 'empty filters':
            mask[torch.rand(self.filters, generator=source) < 0.5] = False
        elif self.mask == 'empty channels':
            mask[:, torch.rand(self.channels, generator=source) < 0.5] = False
        elif self.mask == 'dense':
            mask.fill_(True)
        elif self.mask == 'few':
            mask = torch.rand(weight.shape, generator=source) < 0.04
        elif self.mask in ('one', 'none'):
            mask.zero_()
        elif self.mask == 'pairs':
            mask = mask[::2].repeat_interleave(2, 0)[: self.filters]
        if self.mask == 'one':
            at = torch.randint(mask.numel(), (), generator=source)
            mask.view(-1)[at] = True
        return x, mask, weight


SPARSE = ('empty filters', 'empty channels', 'dense', 'one', 'none')
MASKS = ('random',) * 4 + ('pairs',) * 3 + SPARSE


def random_case(source: random.Random) -> Case:
    """Draw a small convolution of any supported shape."""
    while True:
        pointwise = source.random() < 0.15
        kernel = [1 if pointwise else source.randint(1, 7) for _ in range(2)]
        if source.random() < 0.3:
            kernel = [3, 3]
        plain = source.random() < 0.3
        case = Case(
            kernel=(kernel[0], kernel[1]),
            stride=tuple(1 if plain else _small(source, 4) for _ in range(2)),
            padding=tuple(
                0 if pointwise and plain else source.randint(-1, 4)
                for _ in range(4)
            ),
            dilation=tuple(_small(source, 12) for _ in range(2)),
            images=source.choice((1, 1, 2, 3, 9)),
            channels=source.choice((1, 2, 3, 5, 16, 40)),
            filters=source.choice((1, 2, 3, 7, 8, 33)),
            height=source.randint(1, 30),
            width=source.randint(1, 30),
            mask=source.choice(MASKS),
            seed=source.randrange(2**31),
        )
        left, right, top, bottom = case.padding
        sizes = (case.height + top + bottom, case.width + left + right)
        reach = [
            d * (k - 1) + 1
            for d, k in zip(case.dilation, case.kernel, strict=True)
        ]
        if all(a >= b for a, b in zip(sizes, reach, strict=True)):
            return case


def _small(source: random.Random, most: int) -> int:
    """Draw 1 half of the time, and rarely more than 3."""
    kind = source.random()
    most = 1 if kind < 0.5 else min(most, 3) if kind < 0.9 else most
    return source.randint(1, most)


def within_rounding(
    what: object, found: Tensor, exact: Tensor, absolute: Tensor, terms: int
) -> None:
    """Assert that sums of ``terms`` products are as exact as float32."""
    bound = terms * UNIT / (1 - terms * UNIT) * absolute
    # What the float64 result itself is off by, and the tiniest floats.
    bound = bound * (1 + 1e-6) + 1e-37
    assert found.shape == exact.shape, f'{what}: {found.shape}'
    off = ((found.double() - exact).abs() / bound).max().item()
    assert off <= 1, f'{what}: {off:.3g} times the bound of rounding'


def pattern_of(case: Case, mask: Tensor) -> list[Tensor]:
    return make_pattern(mask, case.geometry)


def check(case: Case) -> None:
    """Assert that all products of a case are exact to rounding."""
    x, mask, weight = case.draw()
    nonzeros, numbers = pattern_of(case, mask), case.geometry.numbers()
    source = torch.Generator().manual_seed(case.seed + 1)
    bias = torch.randn(case.filters, generator=source)

    def double(tensor: Tensor) -> Tensor:
        return tensor.double().requires_grad_()

    x64, bias64 = double(x), double(bias)
    weight64 = double(weight * mask)
    exact = case.dense(x64, weight64) + bias64[:, None, None]
    grad = torch.randn(exact.shape, generator=source)
    exact.backward(grad.double())

    sizes = double(x.abs()), double((weight * mask).abs())
    total = case.dense(*sizes)
    total.backward(grad.double().abs())
    total = total.detach() + bias.double().abs()[:, None, None]
    terms = case.channels * case.kernel[0] * case.kernel[1] + 1

    for leaf in (x, weight, bias):
        leaf.requires_grad_()
    found = sparse_conv2d(x, weight, bias, nonzeros, numbers)
    found.backward(grad)
    within_rounding((case, 'forward'), found, exact, total, terms)
    within_rounding(
        (case, 'input gradient'),
        x.grad,
        x64.grad,
        sizes[0].grad,
        case.filters * case.kernel[0] * case.kernel[1],
    )
    # Beyond the products, threads and vectors are summed.
    products = case.images * exact.shape[2] * exact.shape[3]
    within_rounding(
        (case, 'weight gradient'),
        weight.grad,
        weight64.grad * mask,
        sizes[1].grad,
        products + 20,
    )
    within_rounding(
        (case, 'bias gradient'),
        bias.grad,
        bias64.grad,
        grad.double().abs().sum((0, 2, 3)),
        products,
    )

    # Any of bias, residual and relu; max(., 0) raises no error of rounding.
    epilogue = case.seed % 8
    residual = torch.randn(exact.shape, generator=source)
    with torch.no_grad():
        fused = sparse_conv2d_fused(
            x,
            weight.view(-1)[nonzeros[2]],
            bias if epilogue & 1 else None,
            residual if epilogue & 2 else None,
            bool(epilogue & 4),
            nonzeros[:3],
            numbers,
            case.filters,
        )
        if not epilogue & 1:
            exact = exact - bias64[:, None, None]
        if epilogue & 2:
            exact = exact + residual
            total = total + residual.double().abs()
        if epilogue & 4:
            exact = exact.relu()
    within_rounding((case, 'fused'), fused, exact, total, terms + 1)


def forget_layouts() -> None:
    """Clear the cached layouts, which depend on the loaded library."""
    pattern.forward_layout.cache_clear()
    pattern.backward_layouts.cache_clear()
