"""Hooks, patches, modes and subclasses on sparse kernels against dense."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from helpers.networks import Block, assert_equal, block, sparsified
from helpers.random_programs import Doubled
from sift_mm.deploy import to_sparse

pytestmark = pytest.mark.usefixtures('seed')
to_all_sparse = partial(to_sparse, execution='sparse')


LAYERS = ('conv', 'norm', 'relu', 'pool', 'linear', 'branch', 'branch.conv')
LAYERS += ('branch.norm', 'branch.relu', '')


def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output * 3


def hook_before(module: nn.Module, inputs: Any) -> Any:
    return inputs[0] - 0.5


def with_hook(layer: nn.Module) -> None:
    layer.register_forward_hook(hook)


def with_hook_before(layer: nn.Module) -> None:
    layer.register_forward_pre_hook(hook_before)


def with_own_forward(layer: Any) -> None:
    layer.forward = torch.sin


def with_own_call(layer: Any) -> None:
    call = layer._call_impl
    layer._call_impl = lambda *args: call(*args) * 2


def with_own_convolution(layer: Any) -> None:
    if isinstance(layer, nn.Conv2d):
        layer._conv_forward = lambda x, *_: x.cos()


@pytest.mark.parametrize(
    'change',
    [
        with_hook,
        with_hook_before,
        with_own_forward,
        with_own_call,
        with_own_convolution,
    ],
)
@pytest.mark.parametrize('when', ['before', 'after'])
@torch.no_grad()
def test_hooks_and_own_forwards_run(change: Callable, when: str) -> None:
    for name in LAYERS:
        model = block()
        if when == 'before':
            change(model.get_submodule(name))
        sparse = to_all_sparse(model)
        assert_equal(model, sparse)
        if when == 'after':
            for network in (model, sparse):
                change(network.get_submodule(name))
            assert_equal(model, sparse)


def test_hooks_of_all_modules_run() -> None:
    model = block()
    sparse = to_all_sparse(model)
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: output + 0.5
    )
    try:
        assert_equal(model, sparse)
    finally:
        handle.remove()


PATCHED = [
    *((k, 'forward') for k in (nn.Conv2d, nn.Linear, nn.BatchNorm2d)),
    *((k, '__call__') for k in (nn.Conv2d, nn.ReLU, nn.BatchNorm2d)),
    *((k, 'forward') for k in (nn.ReLU, nn.MaxPool2d, nn.Sequential)),
    *((F, k) for k in ('conv2d', 'linear', 'relu', 'max_pool2d')),
    (F, 'batch_norm'),
    (nn.Conv2d, '_conv_forward'),
    (nn.Module, '_call_impl'),
]


@pytest.mark.parametrize(('owner', 'name'), PATCHED)
@torch.no_grad()
def test_patched_functions_run(
    owner: Any, name: str, monkeypatch: Any
) -> None:
    model = block()
    sparse: Any = to_all_sparse(model)
    function = getattr(owner, name)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, lambda *a, **k: function(*a, **k) * 2)
        assert_equal(model, sparse)
    assert_equal(model, sparse)
    assert len(sparse.sparse_report.sparse) == 3


class Doubling(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        return found * 2 if func in (F.conv2d, F.linear, F.relu) else found


@pytest.mark.parametrize('mode', [Doubling(), torch.device('meta')])
@torch.no_grad()
def test_modes_of_functions(mode: Any) -> None:
    model, x = block(), torch.randn(2, 4, 6, 8)
    sparse = to_all_sparse(model)
    with mode:
        assert_equal(model, sparse, x)


class SamePool(nn.MaxPool2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, (1, 0, 1, 0)))[:, :, 1:, 1:]


class ScaledNorm(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


class Called(nn.ReLU):
    def __call__(self, *args: Any) -> Any:
        return super().__call__(*args) * 2


@pytest.mark.parametrize(
    ('name', 'layer'),
    [
        ('pool', SamePool(3, 1, 1)),
        ('norm', ScaledNorm(4)),
        ('relu', Called()),
        ('conv', Doubled(4, 4, 3, padding=1)),
    ],
)
@torch.no_grad()
def test_subclasses_run_their_own_forward(name: str, layer: nn.Module) -> None:
    model = Block()
    setattr(model, name, copy.deepcopy(layer))
    model = sparsified(model, 0.4)
    assert_equal(model, to_all_sparse(model))
