"""Max-pooling against PyTorch's."""

import random

import pytest
import torch
from torch.nn import functional as F

from sift_mm.kernels import max_pool2d


def cases(seed: int, number: int):
    rng = random.Random(seed)
    for _ in range(number):
        kernel = rng.randint(1, 5), rng.randint(1, 5)
        stride = rng.randint(1, 4), rng.randint(1, 4)
        pad = rng.randint(0, kernel[0] // 2), rng.randint(0, kernel[1] // 2)
        size = rng.randint(kernel[0], 20), rng.randint(kernel[1], 20)
        # Small whole numbers: most windows have equal maxima.
        x = torch.randint(-3, 4, (rng.randint(1, 3), rng.randint(1, 4), *size))
        yield x.float(), kernel, stride, pad


def test_outputs_and_gradients_are_pytorchs() -> None:
    seed = random.randrange(2**31)
    print('seed', seed)
    torch.manual_seed(seed)
    for x, kernel, stride, pad in cases(seed, 300):
        x.requires_grad_()
        ours = max_pool2d(x, kernel, stride, pad)
        theirs = F.max_pool2d(x, kernel, stride, pad)
        ours_again = max_pool2d(x, kernel, stride, pad)
        assert torch.equal(ours, theirs)
        grad = torch.randn_like(ours)
        (a,) = torch.autograd.grad(ours, x, grad)
        (b,) = torch.autograd.grad(theirs, x, grad)
        # Windows overlap: sums of at most 25 in another order.
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
        grad.requires_grad_()
        (c,) = torch.autograd.grad(ours_again, x, grad, create_graph=True)
        torch.testing.assert_close(c, b, rtol=0, atol=1e-5)
        (d,) = torch.autograd.grad(c, grad, x)
        assert torch.equal(d, theirs)  # The maxima's inputs.


def test_nan_and_infinity_come_through() -> None:
    x = torch.tensor([[[[1.0, float('nan'), 2.0, 3.0]] * 2]])
    x = torch.cat([x, torch.full_like(x, -torch.inf)], 1)
    torch.testing.assert_close(
        max_pool2d(x, (2, 2), (1, 2)),
        F.max_pool2d(x, (2, 2), (1, 2)),
        equal_nan=True,
    )


def test_windows_of_minus_infinity_give_their_gradient_to_an_input() -> None:
    x = torch.full((1, 2, 5, 40), -torch.inf, requires_grad=True)
    for kernel, pad in (((3, 3), (1, 1)), ((5, 5), (2, 2)), ((2, 4), (0, 2))):
        grads = [
            torch.autograd.grad(pooled.sum(), x)[0]
            for pooled in (
                max_pool2d(x, kernel, (1, 1), pad),
                F.max_pool2d(x, kernel, 1, pad),
            )
        ]
        assert torch.equal(*grads)


@pytest.mark.parametrize(
    'x',
    [
        torch.randn(2, 3, 8, 8).double(),
        torch.randn(3, 8, 8),
        torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last),
    ],
    ids=['float64', 'no batch', 'channels_last'],
)
def test_other_inputs_are_pooled_too(x: torch.Tensor) -> None:
    assert torch.equal(
        max_pool2d(x, (3, 3), (2, 2), (1, 1)), F.max_pool2d(x, 3, 2, 1)
    )


def test_opcheck() -> None:
    x = torch.randn(2, 3, 9, 8, requires_grad=True)
    operator = torch.ops.sift_mm.max_pool2d.default
    torch.library.opcheck(operator, (x, [3, 3, 2, 2, 1, 1], True))
