"""Networks on sparse kernels against themselves executed densely."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm

from helpers.networks import (
    assert_equal,
    block,
    make_block,
    sparsified,
    tensors,
)
from sift_mm.deploy import sparse_calls as calls
from sift_mm.deploy import to_sparse
from sift_mm.errors import UserError
from sift_mm.kernels import timing

pytestmark = pytest.mark.usefixtures('seed')
to_all_sparse = partial(to_sparse, execution='sparse')


@pytest.mark.parametrize(
    'change',
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        old_weight_norm,
        old_spectral_norm,
        partial(prune.random_unstructured, name='weight', amount=0.5),
    ],
)
@torch.no_grad()
def test_weights_that_are_computed(change: Callable) -> None:
    model = block()
    for layer in (model.conv, model.linear):
        layer.weight[:, 0] += 1  # No filter is zero, which has no direction.
    change(model.conv)
    change(model.linear)
    assert_equal(model, to_all_sparse(model.eval()))


class Reader(nn.Module):
    """Owner of layers whose weights it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.conv.weight.abs(), self.conv.bias)
        return F.linear(F.pad(x, (1, 1)), self.linear.weight) + 1


class Attention(nn.Module):
    def __init__(self, fast: bool) -> None:
        super().__init__()
        layer: Any = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.fast = fast
        self.layer = layer if fast else nn.MultiheadAttention(8, 2)
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x.flatten(1, 2))
        return self.layer(x) if self.fast else self.layer(x, x, x)[0]


@pytest.mark.parametrize(
    'make', [Reader, partial(Attention, True), partial(Attention, False)]
)
@torch.no_grad()
def test_owners_that_read_weights(make: Callable) -> None:
    model = sparsified(make(), 0.4)
    sparse = to_all_sparse(model)
    assert_equal(model, sparse)
    assert_equal(model, sparse)
    # What they change counts from then on.
    for network in (model, sparse):
        for layer in network.modules():
            if isinstance(layer, (nn.Linear, nn.Conv2d)):
                layer.weight.data.mul_(2)
    assert_equal(model, sparse)


def test_a_layer_is_dense_once_its_weight_is_read() -> None:
    model = block()
    sparse = to_all_sparse(model)
    assert torch.equal(sparse.conv.weight, model.conv.weight)
    assert type(sparse.conv) is nn.Conv2d
    assert sparse.sparse_report.dense == {'conv': 'its weight was read'}
    sparse.linear.weight = nn.Parameter(torch.eye(8))
    model.linear.weight = nn.Parameter(torch.eye(8))
    assert_equal(model, sparse)


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('conv.stride', (2, 2)),
        ('conv.dilation', (2, 2)),
        ('conv.padding', 'same'),
        ('conv.bias', nn.Parameter(torch.ones(4))),
        ('norm.running_mean', torch.ones(4)),
        ('norm.weight', nn.Parameter(torch.ones(4))),
        ('norm.eps', 0.5),
        ('norm.running_var', None),
        ('pool.kernel_size', 2),
        ('pool.ceil_mode', True),
        ('relu', nn.Identity()),
        ('norm', nn.GroupNorm(2, 4)),
    ],
)
@torch.no_grad()
def test_attributes_that_change_later(name: str, value: Any) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for key, child in block().named_children():
                self.add_module(key, child)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            x = self.norm(x)
            x = self.relu(x)
            return self.pool(x)

    model = Plain().eval()
    sparse = to_all_sparse(model)
    assert 'norm, ReLU' in sparse.sparse_report.fused['conv']
    owner, _, key = name.rpartition('.')
    for network in (model, sparse):
        network(torch.randn(2, 4, 6, 8))
        setattr(network.get_submodule(owner), key, copy.deepcopy(value))
        if value is None:
            network.norm.running_mean = None
    assert_equal(model, sparse)


def noisy(self: Any, x: Tensor, times: int = 2, *, more: Any = ()) -> Any:
    """Use random draws, Python numbers and arguments of several kinds."""
    for tensor in more:
        x = x + tensor
    x = self.conv(x) * torch.rand(1) * times
    return [self.norm(x), dict(size=x * x.shape[-1])]


def preactivation(self: Any, x: Tensor) -> Tensor:
    """Change the convolution's input before its output is added."""
    out = self.conv(x)
    x = self.relu(x)
    out = self.norm(out)
    return out + x


def joined(self: Any, parts: Any) -> Any:
    """Take a dict and return a tuple."""
    out = self.conv(parts['a'][0])
    out = self.norm(out)
    out += parts['b']
    return self.relu(out), parts


CALLS: dict[Callable, Callable] = {
    noisy: lambda m, x: [m(x), m(x, 3), m(x, times=4, more=[x, x])],
    joined: lambda m, x: list(m(dict(a=(x,), b=x))[:1]),
}


@pytest.mark.parametrize('run', [noisy, preactivation, joined])
@torch.no_grad()
def test_blocks_run_their_own_program(run: Callable) -> None:
    layers = dict(conv=nn.Conv2d(4, 4, 3, padding=1), norm=nn.BatchNorm2d(4))
    model = make_block(run.__name__, run, relu=nn.ReLU(inplace=True), **layers)
    sparse = to_all_sparse(sparsified(model, 0.4))

    def call(network: nn.Module, x: Tensor) -> Any:
        torch.manual_seed(1)
        given = CALLS.get(run, lambda m, x: [m(x)])(network, x)
        return [*tensors(given), x]

    assert_equal(partial(call, model), partial(call, sparse))


@pytest.mark.parametrize('cost', [1, 100])
@torch.no_grad()
def test_the_faster_way_is_kept(cost: int, monkeypatch: Any) -> None:
    now = [0]

    def slow(run: Callable, seconds: int) -> Callable:
        def timed(*args: Any) -> Tensor:
            now[0] += seconds
            return run(*args)

        return timed

    monkeypatch.setattr(timing, 'perf_counter', lambda: now[0])
    monkeypatch.setattr(calls, 'SMALLEST', 0)
    monkeypatch.setattr(calls, 'run', slow(calls.run, cost))
    monkeypatch.setattr(calls, 'run_dense', slow(calls.run_dense, 10))
    model = block().conv
    sparse: Any = to_sparse(nn.Sequential(model).eval())
    assert_equal(model, sparse)
    expected = {} if cost == 1 else {'0': 'faster so, as timed'}
    assert sparse.sparse_report.dense == expected
    began = now[0]
    assert_equal(model, sparse)
    assert now[0] - began == min(cost, 10)  # Nothing is timed again.


def test_masks_say_what_is_kept() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU()).eval()
    weight = model[0].weight.data
    mask = torch.rand_like(weight) < 0.3
    weight *= mask
    weight.view(-1)[mask.view(-1).nonzero()[0]] = 0  # Active, and zero.
    sparse: Any = to_all_sparse(model, {'0.weight': mask})
    assert sparse[0].values.numel() == int(mask.sum())
    x = torch.randn(1, 8, 9, 9)
    torch.testing.assert_close(sparse(x), model(x))
    # A mask that the weight does not obey would change the result.
    both = nn.Sequential(*model, nn.Conv2d(8, 8, 3)).eval()
    both[2].weight.data[:4] = 0
    mask &= torch.rand_like(weight) < 0.5
    report: Any = to_all_sparse(both, {'0.weight': mask}).sparse_report
    assert report.dense['0'] == 'its weight is not zero outside its mask'
    assert list(report.sparse) == ['2']


@pytest.mark.parametrize(
    ('masks', 'execution', 'words'),
    [
        (None, 'sparse', 'in training mode'),
        ({}, 'sparse', 'have no zeros'),
        ({}, 'dense', "execution is 'dense'"),
        ({'1.weight': torch.ones(1)}, 'auto', "'1.weight' has no weight"),
        ({'0.weight': torch.ones(3, 3)}, 'auto', 'no weight of its shape'),
        (torch.ones(3, 3), 'auto', 'masks is a Tensor'),
    ],
)
def test_refusals(masks: Any, execution: Any, words: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3)).train(masks is None)
    with pytest.raises(UserError, match=words):
        to_sparse(model, masks, execution)


def test_dense_layers_are_named() -> None:
    layers = [nn.Conv2d(8, 8, 3) for _ in range(3)]
    model = nn.Sequential(*layers, nn.Conv2d(8, 8, 3, groups=2)).eval()
    model[0].weight.data *= torch.rand(8, 8, 3, 3) < 0.8
    model[1].weight.data *= torch.rand(8, 8, 3, 3) < 0.2
    model[3].weight.data *= torch.rand(8, 4, 3, 3) < 0.2
    report: Any = to_sparse(model).sparse_report
    assert 'gains nothing' in report.dense['0']
    assert report.dense['3'] == 'it has 2 groups'
    assert list(report.sparse) == ['1']
    assert '  1: sparse, density 0.' in str(report)
