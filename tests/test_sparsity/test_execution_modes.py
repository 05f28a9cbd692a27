"""Modes, patched functions and checkpoints see what PyTorch computes."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from helpers.dense_twins import (
    CLOSE,
    IMAGES,
    assert_equal,
    convolution,
    execute,
)

CONVOLUTION = torch.ops.aten.convolution.default


class Doubling(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        return found * 2 if func is CONVOLUTION else found


class FunctionMode(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        doubled = F.conv2d, F.linear, F.max_pool2d
        return found * 2 if func in doubled else found


def run_under(mode, model, x):
    with mode():
        return model(x)


@pytest.mark.parametrize('mode', [Doubling, FunctionMode])
def test_modes_see_the_functions_of_pytorch(mode):
    model = convolution()
    sparse, dense = execute(model)
    run, other = (partial(run_under, mode, each) for each in (model, dense))
    masks = sparse.masks
    assert_equal(model, dense, IMAGES, masks=masks, run=run, other=other)


def test_patched_poolings_run(monkeypatch):
    model = convolution()
    sparse, dense = execute(model)
    pool = F.max_pool2d
    monkeypatch.setattr(F, 'max_pool2d', lambda *a, **k: 2 * pool(*a, **k))
    assert_equal(model, dense, IMAGES, masks=sparse.masks)


def change_input(model, x):
    x = x * 1
    return model(x) + x.mul_(2)


def change_weight(model, x):
    out = model(x.detach())
    with torch.no_grad():
        model.weight.mul_(0.5)
    return out + x.sum()


def sparsify_input(model, x):
    return model(x.detach().to_sparse()) + x.sum()


@pytest.mark.parametrize('run', [change_input, change_weight, sparsify_input])
def test_a_linear_layer_keeps_only_what_its_gradients_read(run):
    model = nn.Sequential(nn.Linear(8, 8))
    sparse, dense = execute(model)
    for each in (model, dense):
        each[0].weight.requires_grad_(run is not change_input)
    run, other = (partial(run, each[0]) for each in (model, dense))
    x, masks = torch.randn(3, 8), sparse.masks
    assert_equal(model, dense, x, masks=masks, run=run, other=other)


@pytest.mark.parametrize('use_reentrant', [False, True])
def test_statistics_under_checkpoints_are_those_of_pytorch(use_reentrant):
    model = convolution()[:2]
    _, dense = execute(model)
    for each in (model, dense):
        x = IMAGES.clone().requires_grad_()
        out = checkpoint(each, x, use_reentrant=use_reentrant)
        out.square().sum().backward()
    for one, two in zip(model.buffers(), dense.buffers(), strict=True):
        torch.testing.assert_close(one, two, **CLOSE)
