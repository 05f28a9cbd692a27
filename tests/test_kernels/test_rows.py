"""Rows of features: linear layers, and 1 x 1 convolutions in NHWC."""

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from helpers.operator_layers import Layer
from helpers.random_convolutions import Case
from sift_mm.kernels import sparse_conv2d, sparse_conv2d_fused
from sift_mm.kernels.ops import input_gradient, weight_gradient

POINTWISE = Case(kernel=(1, 1), padding=(0, 0, 0, 0))


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def nhwc(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def random_rows(source: random.Random) -> Case:
    return replace(
        POINTWISE,
        images=source.choice((1, 2, 5)),
        channels=source.choice((2, 3, 4, 7, 16, 33, 70, 190)),
        filters=source.choice((1, 2, 3, 4, 15, 16, 17, 64, 65)),
        height=source.randint(1, 16),
        width=source.randint(2, 16),
        mask=source.choice(('random', 'pairs', 'empty filters', 'few')),
        seed=source.randrange(2**31),
    )


def test_nhwc_has_the_bits_of_nchw():
    seed = random.randrange(10**6)
    print(f'seed {seed}')
    source = random.Random(seed)
    for _ in range(40):
        case = random_rows(source)
        layer = Layer(case)
        torch.set_num_threads(source.choice((1, 2)))
        with torch.no_grad():
            y = layer(layer.x)
            grad = torch.randn_like(y)
            expected = layer.gradients(layer.x, grad)
            found = layer(nhwc(layer.x))
            assert torch.equal(found, y), case
            assert found.is_contiguous(memory_format=torch.channels_last)
            fused = layer.fused(nhwc(layer.x), grad, relu=True)
            assert torch.equal(fused, layer.fused(layer.x, grad, True)), case
            gradients = layer.gradients(nhwc(layer.x), nhwc(grad))
            assert torch.equal(gradients[0], expected[0]), case
            torch.testing.assert_close(
                gradients[1], expected[1], atol=1e-4, rtol=1e-4
            )


def test_a_linear_layer_is_a_convolution_of_pixels():
    seed = random.randrange(10**6)
    print(f'seed {seed}')
    source = random.Random(seed)
    for _ in range(20):
        layer = Layer(random_rows(source))
        weight = layer.weight.detach()
        fixed = layer.pattern, layer.numbers
        x = nhwc(layer.x).permute(0, 2, 3, 1).flatten(0, 2)
        with torch.no_grad():
            image = layer(layer.x)
            y = sparse_conv2d(x, weight[..., 0, 0], layer.bias, *fixed)
            grad = torch.randn_like(y)
            rows = x, weight[..., 0, 0], *fixed
            found = input_gradient(grad, *rows), weight_gradient(grad, *rows)
            pixels = grad.view(*layer.x.shape[::2], -1, len(weight))
            expected = layer.gradients(layer.x, pixels.permute(0, 3, 1, 2))
            fused = layer.fused(x, grad, relu=True)
            other = layer.fused(layer.x, pixels.permute(0, 3, 1, 2), True)
        assert torch.equal(fused, other.permute(0, 2, 3, 1).flatten(0, 2))
        assert torch.equal(y, image.permute(0, 2, 3, 1).flatten(0, 2))
        assert y.is_contiguous() and found[0].is_contiguous()
        assert torch.equal(
            found[0], expected[0].permute(0, 2, 3, 1).flatten(0, 2)
        )
        torch.testing.assert_close(
            found[1], expected[1][..., 0, 0], atol=1e-4, rtol=1e-4
        )


def test_idle_lanes_do_not_reach_the_gradient():
    layer = Layer(replace(POINTWISE, images=1, height=3, width=5))
    x = torch.full_like(nhwc(layer.x), torch.inf)
    with torch.no_grad():
        grad = torch.ones_like(layer(x))
        _, found = layer.gradients(x, nhwc(grad))
    assert torch.equal(
        found[layer.mask],
        x.new_full((), torch.inf).expand(int(layer.mask.sum())),
    )


def test_outputs_may_be_changed_in_place():
    layer = Layer(POINTWISE)
    x = torch.randn(6, layer.weight.shape[1], requires_grad=True)
    weight = layer.weight[..., 0, 0]
    y = sparse_conv2d(x, weight, None, layer.pattern, layer.numbers)
    y += 1
    y.sum().backward()
    expected = (weight * layer.mask[..., 0, 0]).sum(0).expand_as(x)
    torch.testing.assert_close(x.grad, expected)


def test_opcheck():
    layer = Layer(POINTWISE)
    fixed = layer.pattern, layer.numbers
    check = torch.library.opcheck
    x = nhwc(layer.x).requires_grad_()
    convolve = torch.ops.sift_mm.sparse_conv2d.default
    for choice in ((True,) * 3, (False,) * 3):
        check(convolve, (x, layer.weight, layer.bias, *fixed, choice))
    y = layer(x).detach()
    x, weight = x.detach(), layer.weight.detach()
    values = weight.view(-1)[layer.pattern[2]]
    arguments = x, values, None, y, True, *fixed, len(weight)
    check(sparse_conv2d_fused.registered, arguments)
    check(input_gradient.registered, (y, x, weight, *fixed))
    check(weight_gradient.registered, (y, x, weight, *fixed))
