"""Copies on sparse kernels: their inputs, types, exports and files."""

import copy
import io
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.networks import Block, assert_equal, block, sparsified
from sift_mm.deploy import to_sparse

pytestmark = pytest.mark.usefixtures('seed')
to_all_sparse = partial(to_sparse, execution='sparse')


@pytest.mark.parametrize('shape', [(5, 8), (2, 3, 8), (8,), (0, 8), (2, 0, 8)])
@torch.no_grad()
def test_a_linear_layer_takes_any_leading_shape(shape: tuple) -> None:
    model = sparsified(nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 3)))
    assert_equal(model, to_all_sparse(model), torch.randn(shape))


@torch.no_grad()
def test_no_image_gives_no_output() -> None:
    model = block()
    sparse = to_all_sparse(model)
    assert sparse(torch.randn(0, 4, 6, 8)).shape == (0, 4, 6, 8)
    for x in (torch.randn(2, 3, 6, 8), torch.randn(2, 4, 6, 7)):
        with pytest.raises(RuntimeError):  # As the dense network has it.
            sparse(x)


def channels_last(x: Tensor) -> Tensor:
    return x.to(memory_format=torch.channels_last)


def strided(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 3)[..., ::2]


@pytest.mark.parametrize('layout', [channels_last, strided])
@torch.no_grad()
def test_layouts_are_those_of_the_dense_network(layout: Callable) -> None:
    model = block()
    sparse = to_all_sparse(model)
    x = layout(torch.randn(2, 4, 6, 8))
    for name in ('conv', 'pool', 'branch', 'linear'):
        one, two = (n.get_submodule(name)(x) for n in (model, sparse))
        torch.testing.assert_close(two, one, check_stride=True)
    model.to(memory_format=torch.channels_last)
    x = torch.randn(2, 4, 6, 8)
    one, two = model.conv(x), to_all_sparse(model).conv(x)
    torch.testing.assert_close(two, one, check_stride=True)


@pytest.mark.parametrize(
    'dtype', [torch.float64, torch.bfloat16, torch.float16, 'autocast', 'meta']
)
@torch.no_grad()
def test_other_types_run_dense(dtype: Any) -> None:
    model = block()
    sparse = to_all_sparse(model)
    x = torch.randn(2, 4, 6, 8)
    if dtype == 'autocast':
        with torch.autocast('cpu', dtype=torch.bfloat16):
            expected, found = model(x), sparse(x)
    else:
        expected = model.to(dtype)(x.to(dtype))
        found = sparse.to(dtype)(x.to(dtype))
    assert found.dtype == expected.dtype and found.shape == expected.shape
    if dtype != 'meta':
        off = 0.1 if found.dtype.itemsize == 2 else 1e-9
        torch.testing.assert_close(found, expected, rtol=off, atol=off)


def test_gradients_of_inputs_are_right() -> None:
    model = block()
    sparse = to_all_sparse(model)
    x = torch.randn(2, 4, 6, 8)
    assert not sparse(x).requires_grad
    found = []
    for network in (model, sparse):
        given = x.clone().requires_grad_()
        network(given).square().sum().backward()
        found.append(given.grad)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
    ways: tuple[Callable, ...] = (
        lambda n: torch.func.jvp(n, (x,), (x,))[1],
        lambda n: torch.func.vmap(n)(x[:, None]),
        lambda n: torch.func.grad(lambda x: n(x).sum())(x),
        lambda n: torch.func.hessian(lambda x: n(x).square().sum())(x[:1]),
    )
    for way in ways:
        torch.testing.assert_close(
            way(sparse), way(model), rtol=1e-3, atol=1e-3
        )


def test_training_is_refused() -> None:
    sparse = to_all_sparse(block())
    with pytest.raises(RuntimeError, match='train the network that it was'):
        sparse.train()
    sparse.eval()


def exported(model: nn.Module, x: Tensor) -> Any:
    return torch.export.export(model, (x,)).module()


def compiled(model: nn.Module, x: Tensor) -> Any:
    return torch.compile(model, backend='eager')


def traced(model: nn.Module, x: Tensor) -> Any:
    return torch.jit.trace(model, x)


def scripted(model: nn.Module, x: Tensor) -> Any:
    return torch.jit.script(model)


def saved(model: nn.Module, x: Tensor) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def copied(model: nn.Module, x: Tensor) -> Any:
    return copy.deepcopy(model)


def loaded(model: Any, x: Tensor) -> Any:
    """Load this network's state into a zeroed copy."""
    other = copy.deepcopy(model)
    for tensor in other.state_dict().values():
        if tensor.is_floating_point():
            tensor.zero_()
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize(
    'make',
    [exported, compiled, traced, scripted, saved, copied, loaded],
)
@torch.no_grad()
def test_what_is_made_of_a_copy_is_equal(make: Callable) -> None:
    model, x = block(), torch.randn(2, 4, 6, 8)
    sparse = to_all_sparse(model)
    assert_equal(model, sparse, x)
    other = make(sparse, x)
    assert_equal(model, other, x)
    if make in (saved, copied, loaded):
        # It runs in the same way, and a change of one is not the other's.
        assert other.sparse_report.sparse == sparse.sparse_report.sparse
        other.conv.values.zero_()
        assert_equal(model, sparse, x)
    if make is exported:
        assert 'sift_mm.sparse_conv2d_fused' in str(other.graph)


@torch.no_grad()
def test_onnx_export_sees_a_dense_network(monkeypatch: Any) -> None:
    model = sparsified(Block(), 0.4)
    sparse, x = to_all_sparse(model), torch.randn(2, 4, 6, 8)
    monkeypatch.setattr(torch.onnx, 'is_in_onnx_export', lambda: True)
    graph = exported(sparse, x)
    assert 'sift_mm' not in str(graph.graph)
    assert_equal(model, graph, x)


@torch.no_grad()
def test_weights_of_the_trained_network_can_be_loaded() -> None:
    model, other = block(), block()
    sparse = to_all_sparse(other)
    sparse.load_state_dict(model.state_dict())
    assert_equal(model, sparse)


def test_a_weight_that_is_given_is_used() -> None:
    model = block()
    sparse = to_all_sparse(model.eval())
    x, given = torch.randn(2, 4, 6, 8), torch.randn(4, 4, 3, 3)
    for _ in range(2):
        found, expected = (
            torch.func.functional_call(each, {'conv.weight': given}, (x,))
            for each in (sparse, model)
        )
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert 'conv' in sparse.sparse_report.sparse
    sparse.conv.weight = model.conv.weight = nn.Parameter(given)
    assert_equal(model, sparse)
