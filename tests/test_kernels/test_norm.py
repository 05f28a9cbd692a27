"""Batch normalisation against PyTorch's in float64."""

import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sift_mm.kernels import batch_norm


def both(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps):
    """Return outputs, statistics and gradients of ours and of float64."""
    grad = torch.randn_like(x)
    inputs = [t.clone().requires_grad_() for t in (x, weight, bias)]
    out, mean, variance = batch_norm(*inputs, eps)
    ours = out, mean, variance, *torch.autograd.grad(out, inputs, grad)
    inputs = [t.double().requires_grad_() for t in (x, weight, bias)]
    out = F.batch_norm(
        inputs[0], None, None, *inputs[1:], training=True, eps=eps
    )
    pixels = x.double().transpose(0, 1).flatten(1)
    theirs = (
        out,
        pixels.mean(1),
        pixels.var(1, unbiased=False),
        *torch.autograd.grad(out, inputs, grad.double()),
    )
    return ours, theirs


def test_outputs_and_gradients_are_pytorchs() -> None:
    seed = random.randrange(2**31)
    print('seed', seed)
    torch.manual_seed(seed)
    rng = random.Random(seed)
    for _ in range(200):
        channels = rng.randint(1, 9)
        # At least as many numbers a channel as make the variance sure.
        x = torch.randn(
            rng.randint(4, 6), channels, rng.randint(2, 20), rng.randint(2, 20)
        )
        spread, shift = rng.choice([0.1, 1, 30]), rng.choice([0, 1, -20])
        x = x * spread + shift
        weight, bias = torch.randn(channels, 2).unbind(1)  # Strided.
        ours, theirs = both(x, weight, bias, rng.choice([1e-5, 0.1]))
        # A number's rounding, in units of the spread, and of sums of them.
        one = 4e-6 * (1 + abs(shift) / spread)
        many = one * (x.numel() / channels) ** 0.5
        bounds = one, one * spread, one * spread**2, one / spread, many, many
        for own, exact, bound in zip(ours, theirs, bounds, strict=True):
            scale = max(1, float(weight.abs().max()))
            torch.testing.assert_close(
                own.double(), exact, rtol=0, atol=bound * scale
            )


@pytest.mark.parametrize('shift', [0, 30])
@pytest.mark.parametrize('size', [(1, 1, 1500, 2000), (4, 2, 1, 200_000)])
def test_large_planes_are_as_exact_as_pytorchs(size, shift) -> None:
    torch.manual_seed(0)
    x = torch.randn(size) + shift
    weight, bias = torch.rand(2, size[1]).unbind()
    grad = torch.randn(size) + 0.5

    def results(normalize, *inputs):
        inputs = [t.clone().requires_grad_() for t in inputs]
        out = normalize(*inputs)
        return out, *torch.autograd.grad(out, inputs, grad.to(out.dtype))

    def dense(x, *affine):
        return F.batch_norm(x, None, None, *affine, training=True)

    exact = results(dense, x.double(), weight.double(), bias.double())
    theirs = results(dense, x, weight, bias)
    ours = results(lambda *args: batch_norm(*args, 1e-5)[0], x, weight, bias)
    for own, other, right in zip(ours, theirs, exact, strict=True):
        off, allowed = ((t - right).abs().max() for t in (own, other))
        rounding = 1e-6 * right.abs().max()
        assert off <= 2 * allowed + rounding


def test_nan_stays_in_its_channel() -> None:
    x = torch.randn(2, 3, 4, 4)
    x[1, 1, 2, 2] = float('nan')
    out = batch_norm(x, torch.ones(3), torch.zeros(3), 1e-5)[0]
    nan = out.isnan().flatten(2).all(2)
    assert nan.tolist() == [[False, True, False]] * 2
    assert int(out.isnan().sum()) == 2 * 16


def test_threads_and_layout_change_no_bit() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 7, 9, 11)
    parts = x, torch.randn(7), torch.randn(7), 1e-5
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(batch_norm(*parts)[0])
    finally:
        torch.set_num_threads(threads)
    last = x.to(memory_format=torch.channels_last)
    for other in (found[1], batch_norm(last, *parts[1:])[0]):
        assert torch.equal(found[0], other)


@pytest.mark.parametrize(
    'x',
    [
        torch.randn(2, 3, 4, 4).double(),
        torch.randn(2, 3, 4),
        torch.randn(1, 3, 1, 1),
        torch.randn(0, 3, 4, 4),
        torch.randn(2, 4, 4, 4),
    ],
    ids=['float64', 'no width', 'one number', 'no image', 'channels'],
)
def test_the_rest_is_left_to_pytorch(x: torch.Tensor) -> None:
    assert batch_norm(x, torch.ones(3), torch.zeros(3), 1e-5) is None


def test_second_derivatives_are_pytorchs() -> None:
    torch.manual_seed(0)
    x, factor = torch.randn(2, 4, 3, 5, 6).unbind()

    def twice(normalize):
        inputs = [t.clone().requires_grad_() for t in (x, *torch.ones(2, 3))]
        out = normalize(*inputs)
        loss = (out * factor).square().sum()
        grads = torch.autograd.grad(loss, inputs, create_graph=True)
        loss = sum(grad.square().sum() for grad in grads)
        return torch.autograd.grad(loss, inputs)

    ours = twice(lambda *args: batch_norm(*args, 1e-5)[0])
    theirs = twice(lambda x, *a: F.batch_norm(x, None, None, *a, True))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_opcheck() -> None:
    norm = nn.BatchNorm2d(3)
    x = torch.randn(2, 3, 5, 4, requires_grad=True)
    torch.library.opcheck(
        torch.ops.sift_mm.batch_norm.default,
        (x, norm.weight, norm.bias, norm.eps),
    )
