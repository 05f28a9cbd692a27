"""The operators as PyTorch and its users take them."""

import copy
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from helpers.operator_layers import Layer
from helpers.random_convolutions import (
    Case,
    random_case,
    within_rounding,
)
from sift_mm.kernels import (
    Geometry,
    make_pattern,
    sparse_conv2d,
    sparse_conv2d_fused,
)
from sift_mm.kernels.ops import input_gradient, weight_gradient

STRIDED = Case(stride=(2, 1), padding=(0, 2, 1, 1), dilation=(1, 3))


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def all_of(layer: Layer, x: Tensor) -> list[Tensor]:
    y = layer(x)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    return [y, layer.fused(x, grad, True), *layer.gradients(x, grad)]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_number_of_threads_does_not_change_a_bit():
    seed = random.randrange(10**6)
    print(f'seed {seed}')
    source = random.Random(seed)
    cases = [random_case(source) for _ in range(20)]
    # Enough filters that threads share them out, with one group of patches.
    cases.append(Case(images=1, channels=64, filters=300, height=7, width=2))
    cases.append(replace(cases[-1], kernel=(1, 1), padding=(0, 0, 0, 0)))
    cases += [replace(c, mask='pairs', filters=301) for c in cases[-2:]]
    for case in cases:
        layer, found = Layer(case), {}
        with torch.no_grad():
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                found[count] = all_of(layer, layer.x)
                grad = torch.ones_like(found[count][0])
                once, again = (
                    layer.gradients(layer.x, grad)[1] for _ in range(2)
                )
                assert torch.equal(once, again), (case, count)
        for count in (2, 3):  # the weight's gradient is reproducible alone
            assert same(found[count][:3], found[1][:3]), (case, count)


@pytest.mark.parametrize('size', [(7, 7), (3, 5), (14, 14), (1, 9)])
@pytest.mark.parametrize('kernel, stride', [(3, 1), (3, 2), (1, 1), (1, 2)])
def test_an_image_has_the_same_outputs_in_any_batch(kernel, stride, size):
    case = Case(
        kernel=(kernel, kernel),
        stride=(stride, stride),
        padding=(kernel // 2,) * 4,
        images=40,
        height=size[0],
        width=size[1],
        channels=20,
        filters=9,
    )
    layer = Layer(case)
    with torch.no_grad():
        together = layer(layer.x)
        grad = torch.ones_like(together)
        whole, _ = layer.gradients(layer.x, grad)
        for first, count in ((0, 1), (3, 2), (10, 30)):
            some = slice(first, first + count)
            assert torch.equal(layer(layer.x[some]), together[some])
            part, _ = layer.gradients(layer.x[some], grad[some])
            assert torch.equal(part, whole[some])


@pytest.mark.parametrize('mask', ['random', 'pairs'])
def test_more_threads_than_buffers_of_gradients(mask):
    layer = Layer(Case(channels=8, filters=53, images=3, mask=mask))
    with torch.no_grad():
        grad = torch.randn_like(layer(layer.x))
        one = layer.gradients(layer.x, grad)[1]
        for count in (9, 17):
            torch.set_num_threads(count)
            many = layer.gradients(layer.x, grad)[1]
            torch.testing.assert_close(many, one)


def test_more_than_two_million_nonzeros():
    case = Case(channels=520, filters=512, height=3, width=3, mask='dense')
    layer = Layer(case)
    assert layer.pattern[2].numel() > 2_200_000
    x = layer.x
    sizes = [t.double().abs().detach() for t in (x, layer.weight)]
    total = case.dense(*sizes) + layer.bias.double().abs()[:, None, None]
    exact = case.dense(x.double(), layer.weight.detach().double())
    exact = exact + layer.bias.detach().double()[:, None, None]
    y = layer(x.requires_grad_())
    within_rounding('forward', y.detach(), exact, total, 9 * 520 + 1)
    y.backward(torch.ones_like(y))
    found = x.grad, layer.weight.grad
    x.grad = layer.weight.grad = None
    layer.dense(x).backward(torch.ones_like(y))
    torch.testing.assert_close(found[0], x.grad, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(found[1], layer.weight.grad)


def test_opcheck():
    layer = Layer(STRIDED)
    fixed = layer.pattern, layer.numbers
    x = layer.x.requires_grad_()
    check = torch.library.opcheck
    convolve = torch.ops.sift_mm.sparse_conv2d.default
    for bias, choice in (
        (layer.bias, (True, True, True)),
        (None, (True, True, False)),
        (layer.bias, (False, True, True)),
    ):
        rest = *fixed, choice, choice[2]
        check(convolve, (x, layer.weight, bias, *rest))
    y = layer(x).detach()
    x, weight = x.detach(), layer.weight.detach()
    values = weight.view(-1)[layer.pattern[2]]
    for bias, residual in ((None, None), (layer.bias.detach(), y)):
        arguments = x, values, bias, residual, True, *fixed, len(weight)
        check(sparse_conv2d_fused.registered, arguments)
    check(input_gradient.registered, (y, x, weight, *fixed))
    check(weight_gradient.registered, (y, x, weight, *fixed))


def test_opcheck_of_a_weight_with_its_inputs_first():
    weight = torch.randn(3, 4).relu_().requires_grad_()
    geometry = Geometry.of((1, 1))
    pattern = make_pattern(weight.detach()[..., None, None] > 0, geometry)
    fixed = weight, torch.randn(4), pattern, geometry.numbers()
    for choice in ((True,) * 3, (False,) * 3):
        arguments = torch.randn(5, 3), *fixed, choice, True, True
        torch.library.opcheck(
            torch.ops.sift_mm.sparse_conv2d.default, arguments
        )


def test_eager_calls_have_the_bits_of_the_registered_operator():
    layer = Layer(STRIDED)
    leaves = [layer.x.requires_grad_(), layer.weight, layer.bias]
    fixed = layer.pattern, layer.numbers, (True, False, True), False
    found = []
    for convolve in (sparse_conv2d, sparse_conv2d.registered):
        y = convolve(*leaves, *fixed)
        name = type(y.grad_fn).__name__
        assert (name == 'sift_mm::sparse_conv2dBackward') == (not found)
        found.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    assert same(*found)


def test_only_the_gradients_that_are_asked_for():
    layer = Layer(Case())
    layer.weight.requires_grad_(False)
    layer(layer.x).sum().backward()
    assert layer.weight.grad is None and layer.x.grad is None
    torch.testing.assert_close(layer.bias.grad, torch.full((4,), 2 * 72.0))


@pytest.mark.parametrize('how', ['channels_last', 'transposed', 'sliced'])
def test_any_memory_format(how):
    layer = Layer(Case())
    expected = all_of(layer, layer.x)

    def spread(x: Tensor) -> Tensor:
        if how == 'channels_last':
            return x.to(memory_format=torch.channels_last)
        if how == 'transposed':
            return x.transpose(0, 3).contiguous().transpose(0, 3)
        wide = torch.full((*x.shape[:3], 2 * x.shape[3] + 1), torch.nan)
        wide[..., 1::2] = x
        return wide[..., 1::2]

    def strided(x: Tensor) -> Tensor:
        return torch.stack([x, x], 1)[:, 0]

    x, weight = spread(layer.x), spread(layer.weight.detach())
    assert not x.is_contiguous() and not weight.is_contiguous()
    with torch.no_grad():
        layer.weight = nn.Parameter(weight)
        layer.bias = nn.Parameter(strided(layer.bias))
        y = layer(x)
        grad = spread(
            torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
        )
        values = strided(weight.reshape(-1)[layer.pattern[2]])
        rest = layer.pattern, layer.numbers, 4
        fused = sparse_conv2d_fused(x, values, layer.bias, grad, True, *rest)
        gradients = layer.gradients(x, grad)
    assert same([y, fused, *gradients], expected)
    assert y.is_contiguous()


def test_an_empty_batch():
    layer = Layer(Case(images=0))
    x = layer.x.requires_grad_()
    y = layer(x)
    assert y.shape == (0, 4, 9, 8) == layer.fused(x.detach()).shape
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert layer.weight.grad.shape == layer.weight.shape
    assert not layer.weight.grad.any() and not layer.bias.grad.any()


def test_what_is_not_finite_stays():
    layer = Layer(Case(mask='dense'))
    layer.x[0, 0, 4, 4], layer.x[1, 0, 4, 4] = torch.nan, torch.inf
    with torch.no_grad():
        dense = layer.dense(layer.x)
        for y, expected in (
            (layer(layer.x), dense),
            (layer.fused(layer.x, relu=True), dense.relu()),
        ):
            assert torch.equal(y.isnan(), expected.isnan())
            assert torch.equal(y.isinf(), expected.isinf())


def test_deepcopy_and_pickle():
    layer = Layer(STRIDED)
    expected = all_of(layer, layer.x)
    for other in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
    ):
        assert same(all_of(other, other.x), expected)


def test_inference_mode():
    layer = Layer(STRIDED)
    expected = layer(layer.x).detach()
    with torch.inference_mode():
        assert torch.equal(layer(layer.x), expected)
        assert torch.equal(layer.fused(layer.x), expected)
        assert torch.equal(layer.fused(layer.x.clone()), expected)


def test_compiled_without_a_graph_break_or_a_second_compilation():
    layer = Layer(STRIDED)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    def around(x: Tensor) -> Tensor:
        y = layer(x.sin()).cos()
        return y + layer.fused(x.detach())

    torch._dynamo.reset()
    counting = torch.compile(around, fullgraph=True, backend=backend)
    traced = torch.compile(around, fullgraph=True, backend='aot_eager')
    for _ in range(3):
        x = torch.randn_like(layer.x).requires_grad_()
        expected = around(x)
        expected.sum().backward()
        wanted, x.grad = x.grad, None
        torch.testing.assert_close(counting(x), expected)
        found = traced(x)
        found.sum().backward()
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(x.grad, wanted)
        with torch.no_grad():
            layer.weight += 1
    assert len(graphs) == 1
    # Batches of other sizes, as a symbol.
    for images in (3, 5):
        x = torch.randn(images, *layer.x.shape[1:])
        torch.testing.assert_close(traced(x), around(x))
    torch._dynamo.reset()


def test_several_threads_at_once():
    torch.set_num_threads(2)
    layers = [Layer(replace(STRIDED, images=9, seed=i)) for i in range(4)]
    expected = [all_of(layer, layer.x) for layer in layers]

    def work(i: int) -> bool:
        layer = layers[i % 4]
        return same(all_of(layer, layer.x), expected[i % 4])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(80)))


class Convolved(Dataset):
    """Data set that runs the kernels in the workers of a loader."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        return self.layer(self.layer.x + index).detach()


def test_workers_that_fork_after_threads_ran():
    torch.set_num_threads(2)
    data = Convolved(Layer(replace(STRIDED, images=9)))
    expected = [data[i] for i in range(len(data))]
    loader = DataLoader(
        data, None, num_workers=2, multiprocessing_context='fork', timeout=60
    )
    for _ in range(2):
        assert same(list(loader), expected)
        assert torch.equal(data[1], expected[1])
