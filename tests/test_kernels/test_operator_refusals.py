"""Types, devices, shapes and patterns that the operators refuse."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from helpers.operator_layers import Layer
from helpers.random_convolutions import Case, forget_layouts, pattern_of
from sift_mm.kernels import (
    Geometry,
    build,
    convolution,
    make_pattern,
    sparse_conv2d,
    sparse_conv2d_fused,
)
from sift_mm.kernels.ops import input_gradient, weight_gradient

DTYPES = [torch.float16, torch.bfloat16, torch.float64, torch.int32]


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('what', ['input', 'weight', 'bias'])
def test_other_types_are_refused(what, dtype):
    layer = Layer(Case())
    given = {'input': layer.x, 'weight': layer.weight, 'bias': layer.bias}
    given = {k: v.detach() for k, v in given.items()}
    given[what] = given[what].to(dtype)
    with pytest.raises(
        TypeError,
        match=f'takes float32 on the CPU; the {what} is {dtype} on cpu',
    ):
        sparse_conv2d(*given.values(), layer.pattern, layer.numbers)


def test_another_device_is_refused():
    layer = Layer(Case())
    given = layer.weight, None, layer.pattern, layer.case.geometry
    with pytest.raises(TypeError, match='the input is torch.float32 on meta'):
        convolution.forward(layer.x.to('meta'), *given)
    for mask, words in (
        (layer.mask.to('meta'), 'torch.bool on meta'),
        (layer.weight, 'torch.float32 on cpu'),
    ):
        with pytest.raises(TypeError, match=f'the mask is {words}'):
            make_pattern(mask, layer.case.geometry)


def test_other_shapes_are_refused():
    layer = Layer(Case())
    x, weight, bias = layer.x, layer.weight.detach(), layer.bias.detach()
    rest = layer.pattern, layer.numbers
    values = weight.view(-1)[layer.pattern[2]]
    y = layer(x).detach()

    def refused(sentence: str, operator, *arguments) -> None:
        with pytest.raises(ValueError, match=sentence):
            operator(*arguments)

    convolve, fused = sparse_conv2d, sparse_conv2d_fused
    of_any = r'expected \(any, 3, any, any\)'
    refused(of_any, convolve, x[:, :2], weight, bias, *rest)
    refused(of_any, convolve, x[0], weight, bias, *rest)
    refused('the weight has', convolve, x, weight[..., :2], bias, *rest)
    refused('the weight has', convolve, x, weight[0], bias, *rest)
    refused(r'the bias.*\(4\)', convolve, x, weight, bias[:3], *rest)
    refused(
        'smaller than the kernel', convolve, x[..., :0], weight, bias, *rest
    )
    args = True, *rest, 4
    refused('the values', fused, x, values[1:], bias, None, *args)
    refused(
        r'the residual has shape \(2, 4, 9, 7\); expected \(2, 4, 9, 8\)',
        fused,
        *(x, values, bias, y[..., 1:], *args),
    )
    small = x[..., 1:]
    refused('the gradient', input_gradient, y, small, weight, *rest)
    refused('the gradient', weight_gradient, y[:1], x, weight, *rest)


def test_a_kernel_that_is_too_large_is_refused():
    def mask(*shape: int) -> Tensor:
        return torch.ones(shape, dtype=torch.bool)

    geometry, layer = Geometry.of((3, 9)), Layer(Case())
    rest = None, layer.pattern, geometry.numbers()
    with pytest.raises(ValueError, match='kernel of 9 is larger than 7'):
        make_pattern(mask(2, 2, 3, 9), geometry)
    with pytest.raises(ValueError, match='kernel of 9 is larger than 7'):
        sparse_conv2d(layer.x, torch.randn(4, 3, 3, 9), *rest)
    with pytest.raises(ValueError, match=r'expected \(filters, channels, 3, '):
        make_pattern(mask(2, 3, 3), Geometry.of((3, 3)))


def other_patterns() -> dict[str, list[Tensor]]:
    case = Case()
    own = pattern_of(case, case.draw()[1])

    def of(**other: object) -> list[Tensor]:
        case = replace(Case(), **other)
        return pattern_of(case, case.draw()[1])

    dense = of(mask='dense')
    return {
        'none': [],
        'too short': own[:2],
        'more filters': of(filters=5),
        'fewer filters': of(filters=2),
        'more channels': of(channels=90),
        'fewer channels': of(channels=2),
        'larger kernel': of(kernel=(5, 5)),
        'dilation': of(dilation=(2, 2)),
        'stride': of(stride=(2, 2)),
        'rotated': own[1:] + own[:1],
        'other types': [t.long() for t in own],
        'cut': [t if i % 3 == 0 else t[:-1] for i, t in enumerate(own)],
        'rows of another': [
            dense[i] if i % 3 == 0 else t for i, t in enumerate(own)
        ],
        'strided': [torch.stack([t, t], 1)[:, 0] for t in own],
    }


@pytest.mark.parametrize('name', other_patterns())
def test_another_pattern_is_refused(name):
    layer = Layer(Case())
    y, weight = layer(layer.x).detach(), layer.weight.detach()
    values = weight.view(-1)[layer.pattern[2]]
    layer.pattern = other_patterns()[name]
    rest = layer.pattern, layer.numbers
    for operator, *arguments in (
        (sparse_conv2d, layer.x, weight, None, *rest),
        (sparse_conv2d_fused, layer.x, values, None, None, False, *rest, 4),
        (input_gradient, y, layer.x, weight, *rest),
        (weight_gradient, y, layer.x, weight, *rest),
    ):
        with pytest.raises(ValueError, match='the pattern is not one that'):
            operator(*arguments)


def test_a_forward_pattern_alone_has_no_gradient():
    layer = Layer(Case())
    layer.pattern = layer.pattern[:3]
    y = layer(layer.x.requires_grad_())
    with pytest.raises(ValueError, match='the pattern is not one that'):
        y.sum().backward()


def test_a_pattern_of_another_cpu_is_refused(monkeypatch):
    # Blocks of planes are as large as a core's cache.
    layer = Layer(Case(channels=200))
    library = build.library()

    class Other:
        def __getattr__(self, name: str) -> object:
            return getattr(library, name)

        def sift_tile_vectors(self) -> int:
            return library.sift_tile_vectors() // 3

    expected = layer(layer.x)
    with monkeypatch.context() as patch:
        patch.setattr(build, 'library', Other)
        forget_layouts()
        with pytest.raises(ValueError, match='made here'):
            layer(layer.x)
        layer.pattern = pattern_of(layer.case, layer.mask)
        torch.testing.assert_close(layer(layer.x), expected)
    forget_layouts()
