"""Networks on sparse kernels against themselves executed densely."""

import copy
import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torchvision
from blocks import make_block
from equality import assert_equal, sparsified, tensors
from programs import Doubled
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm

from sift_mm.deploy import sparse_layers as kinds
from sift_mm.deploy import to_sparse
from sift_mm.errors import Mistake

pytestmark = pytest.mark.usefixtures('seed')
to_all_sparse = partial(to_sparse, execution='sparse')


class Block(nn.Module):
    """A block with a layer of each kind that is changed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(3, 1, 1)
        self.linear = nn.Linear(8, 8)
        self.branch = nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(4, 4, 3, padding=1),
                norm=nn.BatchNorm2d(4),
                relu=nn.ReLU(inplace=True),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(x)
        out = self.norm(out)
        out += x
        out = self.relu(out)
        return self.linear(self.pool(out)) + self.branch(x)


LAYERS = ('conv', 'norm', 'relu', 'pool', 'linear', 'branch', 'branch.conv')
LAYERS += ('branch.norm', 'branch.relu', '')


def block() -> Any:
    return sparsified(Block(), 0.4)


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


@pytest.mark.parametrize(
    'change', [with_hook, with_hook_before, with_own_forward]
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


class SamePool(nn.MaxPool2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, (1, 0, 1, 0)))[:, :, 1:, 1:]


class ScaledNorm(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


class Leaky(nn.ReLU):
    def forward(self, input: Tensor) -> Tensor:
        return F.leaky_relu(input)


class Halved(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) / 2


@pytest.mark.parametrize(
    ('name', 'layer'),
    [
        ('pool', SamePool(3, 1, 1)),
        ('norm', ScaledNorm(4)),
        ('relu', Leaky()),
        ('linear', Halved(8, 8)),
        ('conv', Doubled(4, 4, 3, padding=1)),
    ],
)
@torch.no_grad()
def test_subclasses_run_their_own_forward(name: str, layer: nn.Module) -> None:
    model = Block()
    setattr(model, name, copy.deepcopy(layer))
    model = sparsified(model, 0.4)
    assert_equal(model, to_all_sparse(model))


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


class Tied(nn.Module):
    """Language model whose head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, 8)
        self.hidden = nn.Linear(8, 8)
        self.head = nn.Linear(8, 16, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        index = (x.flatten() > 0).long()
        return self.head(self.hidden(self.embedding(index)))


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
    'make', [Reader, Tied, partial(Attention, True), partial(Attention, False)]
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
    """Draws, Python numbers, and arguments of several kinds."""
    for tensor in more:
        x = x + tensor
    x = self.conv(x) * torch.rand(1) * times
    return [self.norm(x), dict(size=x * x.shape[-1])]


def preactivation(self: Any, x: Tensor) -> Tensor:
    """The convolution's input changes before its output is added."""
    out = self.conv(x)
    x = self.relu(x)
    out = self.norm(out)
    return out + x


def aliased(self: Any, x: Tensor) -> Tensor:
    """A sum in place changes what another name reads later."""
    x = self.norm(x)
    kept = x
    x += self.conv(x)
    return self.conv(kept).relu_() + kept


def read(self: Any, x: Tensor) -> Tensor:
    """The convolution's output is read beside the norm's."""
    y = self.conv(x)
    return self.norm(y).relu() + y


def spread(self: Any, x: Tensor) -> Tensor:
    """The sum is with a tensor of another shape."""
    mean = x.mean((2, 3), keepdim=True)
    return (self.conv(x) + mean).relu() + self.conv(mean)


def joined(self: Any, parts: Any) -> Any:
    """Takes a dict, and gives a tuple."""
    out = self.conv(parts['a'][0])
    out = self.norm(out)
    out += parts['b']
    return self.relu(out), parts


CALLS: dict[Callable, Callable] = {
    noisy: lambda m, x: [m(x), m(x, 3), m(x, times=4, more=[x, x])],
    joined: lambda m, x: list(m(dict(a=(x,), b=x))[:1]),
}


@pytest.mark.parametrize(
    'run', [noisy, preactivation, aliased, read, spread, joined]
)
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


def unpickled(model: nn.Module, x: Tensor) -> Any:
    return pickle.loads(pickle.dumps(model))


def copied(model: nn.Module, x: Tensor) -> Any:
    return copy.deepcopy(model)


def loaded(model: Any, x: Tensor) -> Any:
    """The copy of another network, with this one's numbers."""
    other = copy.deepcopy(model)
    for tensor in other.state_dict().values():
        if tensor.is_floating_point():
            tensor.zero_()
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize(
    'make',
    [exported, compiled, traced, scripted, saved, unpickled, copied, loaded],
)
@torch.no_grad()
def test_what_is_made_of_a_copy_is_equal(make: Callable) -> None:
    model = sparsified(torchvision.models.resnet18(num_classes=5))
    x = torch.randn(2, 3, 32, 32)
    sparse = to_all_sparse(model)
    assert_equal(model, sparse, x)
    other = make(sparse, x)
    assert_equal(model, other, x)
    if make in (saved, unpickled, copied, loaded):
        # It runs in the same way, and a change of one is not the other's.
        assert other.sparse_report.sparse == sparse.sparse_report.sparse
        other.conv1.values.zero_()
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


@pytest.mark.parametrize('cost', [1, 100])
@torch.no_grad()
def test_the_faster_way_is_kept(cost: int, monkeypatch: Any) -> None:
    now = [0]

    def slow(run: Callable, seconds: int) -> Callable:
        def timed(*args: Any) -> Tensor:
            now[0] += seconds
            return run(*args)

        return timed

    monkeypatch.setattr(kinds, 'perf_counter', lambda: now[0])
    monkeypatch.setattr(kinds, 'SMALLEST', 0)
    monkeypatch.setattr(kinds, 'run', slow(kinds.run, cost))
    monkeypatch.setattr(kinds, 'run_dense', slow(kinds.run_dense, 10))
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
        ({'1.weight': torch.ones(1)}, 'auto', "'1.weight', which the model"),
        ({'0.weight': torch.ones(3, 3)}, 'auto', 'has shape'),
    ],
)
def test_refusals(masks: dict | None, execution: Any, words: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3)).train(masks is None)
    with pytest.raises(Mistake, match=words):
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
