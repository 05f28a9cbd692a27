"""A layer runs sparse only if PyTorch's own function gets its own weight."""

import copy
import io
import pickle
from functools import partial

import pytest
import torch
import torch.nn.utils.parametrize
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import sift_mm
from sift_mm.errors import UserError
from sift_mm.kernels import masked_layers
from sift_mm.sparsity import SparseExecution
from sift_mm.sparsity import execution as execution_module

aten = torch.ops.aten
CONVOLUTION = torch.ops.aten.convolution.default
CLOSE = dict(rtol=1e-4, atol=1e-5)


def convolution(channels=8):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(16, 12, 3, padding=1, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    )


def execute(model, include=('*.weight',), mode='sparse', **kwargs):
    """Put the model under masks; return these and a dense copy."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    kwargs = dict(sparsity=0.75, algorithm='Static', steps=9) | kwargs
    sparse = sift_mm.SparseTraining(
        model, optimizer, include=list(include), execution=mode, **kwargs
    )
    return sparse, copy.deepcopy(model)


def gradients(model, *inputs, run=None):
    inputs = [x.clone().requires_grad_() for x in inputs]
    wanted = [*inputs, *(p for p in model.parameters() if p.requires_grad)]
    out = (run or model)(*inputs)
    grads = torch.autograd.grad(out.square().sum(), wanted, allow_unused=True)
    return out, grads


def assert_equal(model, dense, *inputs, masks=(), run=None, other=None):
    """Assert equal outputs and gradients, of weights inside their masks."""
    out, grads = gradients(model, *inputs, run=run)
    wanted, wanted_grads = gradients(dense, *inputs, run=other)
    torch.testing.assert_close(out, wanted, **CLOSE)
    names = [None] * len(inputs) + [
        n for n, p in model.named_parameters() if p.requires_grad
    ]
    for name, one, two in zip(names, grads, wanted_grads, strict=True):
        if one is None or two is None:
            assert one is two, name
        elif name in masks:
            mask = masks[name]
            torch.testing.assert_close(one[mask], two[mask], **CLOSE)
        else:
            torch.testing.assert_close(one, two, **CLOSE)


IMAGES = torch.randn(3, 8, 10, 9, generator=torch.Generator().manual_seed(1))


def test_nothing_of_the_network_is_patched_but_a_pooling():
    model = convolution()
    before = [type(m) for m in model.modules()]
    sparse, dense = execute(model)
    pooling = model[3]
    for module, kind in zip(model.modules(), before, strict=True):
        assert type(module) is kind or module is pooling
        assert 'forward' not in vars(module)
    assert isinstance(pooling, nn.MaxPool2d)
    assert all(isinstance(p, nn.Parameter) for p in model.parameters())
    assert_equal(model, dense, IMAGES, masks=sparse.masks)
    assert '3 of 3 masked' in sparse.execution
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()


def lora(conv, x):
    extra = torch.full_like(conv.weight, 0.01)
    return conv._conv_forward(x, conv.weight + extra, conv.bias)


def standardized(conv, x):
    weight = conv.weight
    mean = weight.mean((1, 2, 3), keepdim=True)
    return conv._conv_forward(x, weight - mean, conv.bias)


def called(conv, x):
    weights = {'weight': conv.weight.detach() + 0.1}
    return torch.func.functional_call(conv, weights, (x,))


def flipped(conv, x):
    return F.conv2d(x, conv.weight.flip(0), padding=1)


def transposed(conv, x):
    return F.conv_transpose2d(x.repeat(1, 2, 1, 1), conv.weight)


@pytest.mark.parametrize(
    'forward', [lora, standardized, called, flipped, transposed]
)
def test_another_weight_than_the_layers_own_is_used(forward):
    model = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1))
    sparse, dense = execute(model)
    run, other = partial(forward, model[0]), partial(forward, dense[0])
    assert_equal(model, dense, IMAGES, run=run, other=other)
    sparse.step()
    assert '1 not used as the weight of conv2d' in sparse.execution
    model(IMAGES)
    assert '1 of 1 masked' in sparse.execution


def hook_input(module):
    module.register_forward_pre_hook(lambda _, args: (args[0] + 1,))


def hook_output(module):
    module.register_forward_hook(lambda *args: 2 * args[-1])


def patch(module):
    forward = type(module).forward
    module.forward = lambda x: forward(module, x.cos())


@pytest.mark.parametrize('how', [hook_input, hook_output, patch])
@pytest.mark.parametrize('place', [0, 1, 2, 3, 4, 7])
def test_hooks_and_patched_forwards_run(how, place):
    model = convolution()
    sparse, dense = execute(model)
    for each in (model, dense):
        each[2].inplace = False
        how(each[place])
    assert_equal(model, dense, IMAGES, masks=sparse.masks)


def test_backward_hooks_and_hooks_of_the_weight_get_what_dense_gives():
    model = convolution()
    sparse, dense = execute(model)
    seen = {id(model): [], id(dense): []}
    for each in (model, dense):
        each[2].inplace = False
        note = seen[id(each)].append
        each[4].register_full_backward_hook(
            lambda _, i, o, note=note: note((i[0], o[0]))
        )
        each[0].weight.register_hook(lambda g, note=note: note((g,)))
        each[7].weight.register_post_accumulate_grad_hook(
            lambda p, note=note: note((p.grad.clone(),))
        )
        each(IMAGES).square().sum().backward()
    assert len(seen[id(model)]) == 3
    for one, two in zip(*seen.values(), strict=True):
        torch.testing.assert_close(one, two, **CLOSE)


class SamePadding(nn.MaxPool2d):
    def forward(self, x):
        return F.max_pool2d(F.pad(x, (0, 1, 0, 1)), 2, 2)


class Scaled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Halved(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, weight / 2, bias)


class Shifted(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) + 1


class Rectified(nn.Linear):
    def forward(self, x):
        return F.relu(super().forward(x))


def test_subclasses_with_a_forward_of_their_own():
    torch.manual_seed(0)
    model = nn.Sequential(
        Scaled(8, 16, 3, padding=1, padding_mode='circular'),
        Shifted(16),
        SamePadding(3, 2),
        Halved(16, 8, 3),
        nn.Flatten(),
        Rectified(8 * 3 * 3, 5),
    )
    sparse, dense = execute(model)
    assert_equal(model, dense, IMAGES, masks=sparse.masks)
    sparse.step()
    assert '2 of 3 masked' in sparse.execution
    assert '1 not used as the weight of conv2d or linear so far (3)' in (
        sparse.execution
    )


def test_owners_that_read_the_weight():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2)
    sparse, dense = execute(model, ['*linear?.weight', '*_proj*.weight'])
    x = torch.randn(3, 5, 16)
    assert_equal(model, dense, x, masks=sparse.masks)
    model.eval(), dense.eval()
    with torch.no_grad():  # The fast path.
        torch.testing.assert_close(model(x), dense(x), **CLOSE)

    from torchvision.models.swin_transformer import ShiftedWindowAttention

    model = ShiftedWindowAttention(16, [4, 4], [2, 2], 2)
    sparse, dense = execute(model)
    assert_equal(model, dense, torch.randn(2, 8, 8, 16), masks=sparse.masks)
    sparse.step()
    assert '2 of 2 masked' in sparse.execution


def test_parametrized_pruned_and_replaced_weights_run_dense():
    class Centered(nn.Module):
        def forward(self, weight):
            return weight - weight.mean()

    model = convolution()
    sparse, dense = execute(model)
    for each in (model, dense):
        nn.utils.parametrize.register_parametrization(
            each[0], 'weight', Centered()
        )
        each[7].weight = nn.Parameter(torch.ones(5, 12))
    mask = {'4.weight': sparse.masks['4.weight']}
    assert_equal(model, dense, IMAGES, masks=mask)
    with pytest.raises(UserError, match='another parameter'):
        sparse.step()
    assert nn.Parameter(model[4].weight).equal(model[4].weight)


def test_shared_weights_and_two_kinds_of_call():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv = nn.Conv2d(8, 8, 3, padding=1)
            self.other = nn.Conv2d(8, 8, 3, padding=2, dilation=2, stride=2)
            self.other.weight = self.conv.weight

        def forward(self, x):
            x = self.conv(self.conv(x))
            x = self.other(x) + F.conv2d(
                x, weight=self.conv.weight, stride=[2, 2], padding=(1,)
            )
            one = F.conv2d(x[:1], self.conv.weight, None, 1, 'same', 2)
            grouped = F.conv2d(
                x.repeat(1, 2, 1, 1), self.conv.weight, groups=2
            )
            return one.sum() + grouped.square().sum()

    sparse, dense = execute(model := Twice(), ['conv.weight'])
    assert_equal(model, dense, IMAGES / 4, masks=sparse.masks)


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


def test_empty_inputs_have_the_shapes_and_gradients_of_dense():
    for model, shapes in (
        (nn.Sequential(nn.Linear(8, 6)), [(0, 8), (2, 0, 8), (0, 3, 8)]),
        (nn.Sequential(nn.Conv2d(8, 6, 3)), [(0, 8, 5, 5)]),
        (convolution(), [(0, 8, 10, 9)]),
    ):
        sparse, dense = execute(model)
        model.eval(), dense.eval()
        for shape in shapes:
            assert_equal(model, dense, torch.ones(shape))
        with pytest.raises(RuntimeError) as one:
            model(torch.ones(2, 9, 9, 9))
        with pytest.raises(RuntimeError) as two:
            dense(torch.ones(2, 9, 9, 9))
        assert str(one.value) == str(two.value)


@pytest.mark.parametrize('training', [False, True])
def test_second_derivatives_are_dense(training):
    model = convolution().train(training)
    sparse, dense = execute(model)

    def penalty(each, x):
        (grad,) = torch.autograd.grad(
            each(x).square().sum(), x, create_graph=True
        )
        return grad

    masks = sparse.masks if training else {}
    runs = (partial(penalty, each) for each in (model, dense))
    run, other = runs
    assert_equal(model, dense, IMAGES, masks=masks, run=run, other=other)


TRANSFORMS = {
    'grad': lambda m, x: torch.func.grad(lambda t: m(t).square().sum())(x),
    'jvp': lambda m, x: torch.func.jvp(m, (x,), (x.cos(),))[1],
    'vjp': lambda m, x: torch.func.vjp(m, x)[1](torch.ones(3, 5))[0],
    'vmap': lambda m, x: torch.func.vmap(lambda t: m(t[None])[0])(x),
    'hessian': lambda m, x: torch.func.hessian(
        lambda t: m(x * t).square().sum()
    )(torch.ones(1)),
    'jacobian': lambda m, x: torch.autograd.functional.jvp(m, x, x.cos())[1],
    'weights': lambda m, x: torch.func.grad(
        lambda w: torch.func.functional_call(m, w, (x,)).square().sum()
    )(dict(m.named_parameters()))['4.weight'],
}


@pytest.mark.parametrize('name', TRANSFORMS)
@pytest.mark.parametrize('training', [False, True])
def test_transforms_of_functions_are_dense(name, training):
    model = convolution()
    model[2].inplace = False
    _, dense = execute(model)
    for each in (model, dense):
        each.train(training)
        each[1].eval()  # No transform takes statistics that are followed.
    found, wanted = (TRANSFORMS[name](m, IMAGES) for m in (model, dense))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_forward_mode_by_dual_numbers():
    model = convolution().eval()
    _, dense = execute(model)
    with torch.autograd.forward_ad.dual_level():
        x = torch.autograd.forward_ad.make_dual(IMAGES, IMAGES.sin())
        one, two = (
            torch.autograd.forward_ad.unpack_dual(each(x)).tangent
            for each in (model, dense)
        )
    torch.testing.assert_close(one, two, **CLOSE)


def test_the_trained_network_exports_dense():
    model = convolution().eval()
    execute(model, mode='auto')
    _, dense = execute(model)
    wanted = dense(IMAGES)
    exported = torch.export.export(model, (IMAGES,))
    strict = torch.export.export(model, (IMAGES,), strict=True)
    for program in (exported, strict):
        assert 'sift_mm' not in str(program.graph)
        torch.testing.assert_close(program.module()(IMAGES), wanted)
    scripted = torch.jit.script(model)
    traced = torch.jit.trace(model, IMAGES)
    for each in (scripted, traced):
        assert 'sift_mm::' not in str(each.inlined_graph)
        file = io.BytesIO()
        torch.jit.save(each, file)
        file.seek(0)
        torch.testing.assert_close(torch.jit.load(file)(IMAGES), wanted)
    # Those who made programs left the network as it was.
    torch.testing.assert_close(model(IMAGES), wanted, **CLOSE)


def test_the_trained_network_goes_to_onnx(tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    model = convolution().eval()
    _, dense = execute(model)
    path = tmp_path / 'model.onnx'
    torch.onnx.export(model, (IMAGES,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path)
    name = session.get_inputs()[0].name
    (found,) = session.run(None, {name: IMAGES.numpy()})
    torch.testing.assert_close(torch.tensor(found), dense(IMAGES), **CLOSE)


def test_files_and_copies_are_those_of_a_plain_network():
    model = convolution()
    sparse, dense = execute(model)
    model[0].weight.tag = dense[0].weight.tag = 'stays'

    def written(value):
        file = io.BytesIO()
        torch.save(value, file)
        return file.getvalue()

    for take in (
        lambda m: m.state_dict(),
        lambda m: m.state_dict(keep_vars=True),
        lambda m: m[4:],
    ):
        assert written(take(model)) == written(take(dense))
    assert b'sift_mm' not in pickle.dumps(model)
    loaded = pickle.loads(pickle.dumps(model))
    assert loaded[0].weight.tag == 'stays'
    shared = nn.ModuleList([model[0], model[0]])
    copied = copy.deepcopy(shared)
    assert copied[0].weight is copied[1].weight
    for each in (loaded, copied[0], copy.deepcopy(model)):
        assert {type(p) for p in each.parameters()} == {nn.Parameter}
    assert type(copy.deepcopy(model)[3]) is nn.MaxPool2d
    kinds = {type(v) for v in model.state_dict().values()}
    assert kinds == {torch.Tensor}
    weight = model[0].weight
    for made in (weight * 2, weight.detach(), weight.data, weight.view(-1)):
        assert type(made) is torch.Tensor


def test_another_tensor_subclass_is_served():
    class Logged(torch.Tensor):
        calls = []

        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            cls.calls.append(func)
            return super().__torch_function__(func, types, args, kwargs)

    model = nn.Sequential(nn.Conv2d(8, 16, 3))
    _, dense = execute(model)
    images = IMAGES.as_subclass(Logged)
    found, wanted = model(images), dense(images)
    assert type(found) is type(wanted) is Logged
    assert F.conv2d in Logged.calls
    plain = torch.Tensor
    torch.testing.assert_close(
        found.as_subclass(plain), wanted.as_subclass(plain), **CLOSE
    )


@pytest.mark.parametrize('device', ['meta', 'cpu'])
def test_the_default_device_does_not_matter(device):
    model = convolution()
    sparse, dense = execute(model, algorithm='RigL', interval=1)
    torch.set_default_device(device)
    try:
        assert_equal(model, dense, IMAGES, masks=sparse.masks)
        model(IMAGES).square().sum().backward()
        sparse.trainer.execution.layers['0'].mask[0].logical_not_()
        sparse.trainer.execution.refresh_patterns()
        model(IMAGES)
    finally:
        torch.set_default_device(None)


def test_flops_are_those_of_the_dense_network():
    model = convolution()
    _, dense = execute(model)
    found = []
    for each in (model, dense):
        counter = FlopCounterMode(display=False)
        with counter:
            each(IMAGES.clone().requires_grad_()).sum().backward()
        found.append(counter.get_flop_counts()['Global'].values())
    assert sum(found[0]) == sum(found[1]) > 100_000


def test_views_other_layouts_and_broken_inputs():
    model = convolution()
    _, dense = execute(model)
    imaginary = torch.complex(IMAGES, IMAGES.flip(0)).conj().imag
    assert imaginary.is_neg()
    for x in (
        IMAGES.to(memory_format=torch.channels_last),
        imaginary,
        IMAGES.mT.contiguous().mT,
        IMAGES[:1].expand(3, -1, -1, -1),
    ):
        one, two = model[:5](x), dense[:5](x)
        torch.testing.assert_close(one, two, **CLOSE, check_stride=True)
    for each in (model, dense):
        each.to(memory_format=torch.channels_last)
    one, two = model[:5](IMAGES), dense[:5](IMAGES)
    torch.testing.assert_close(one, two, **CLOSE, check_stride=True)
    for each in (model, dense):
        each.double()
    x = IMAGES.double()
    torch.testing.assert_close(model(x), dense(x))


def test_weights_that_change_behind_the_masks_are_used_as_they_are():
    model = convolution()
    sparse, dense = execute(model)
    torch.manual_seed(1)
    for p, q in zip(model.parameters(), dense.parameters(), strict=True):
        q.data = p.data = 0.2 * torch.randn_like(p)
    assert_equal(model, dense, IMAGES)  # In training mode, too.
    assert '3 with nonzeros outside the mask (0, ...)' in sparse.execution


def fail(*_):
    raise KeyboardInterrupt


def test_an_interruption_leaves_the_network_usable(monkeypatch):
    model = convolution()
    with monkeypatch.context() as patch:
        patch.setattr(execution_module, 'attach_pool', fail)
        with pytest.raises(KeyboardInterrupt):
            execute(model)
    assert {type(p) for p in model.parameters()} == {nn.Parameter}
    sparse, dense = execute(model, mode='auto')
    with monkeypatch.context() as patch:
        patch.setattr(masked_layers, 'SMALLEST', 0)
        patch.setattr(masked_layers, 'time_products', fail)
        with pytest.raises(KeyboardInterrupt):
            model(IMAGES)
    assert_equal(model, dense, IMAGES, masks=sparse.masks)

    sparse, dense = execute(model)
    layer = sparse.trainer.execution.layers['4']
    with torch.no_grad():  # A mask that moved, and a pattern that did not.
        new = layer.mask.flip(0)
        layer.mask.copy_(new)
        for each in (model, dense):
            each[4].weight.copy_(torch.randn(new.shape).mul_(new))
        model[4].weight.copy_(dense[4].weight)
    with monkeypatch.context() as patch:
        patch.setattr(masked_layers, 'make_pattern', fail)
        with pytest.raises(KeyboardInterrupt):
            sparse.trainer.execution.refresh_patterns()
    assert_equal(model, dense, IMAGES, masks=sparse.masks)
    assert '3 of 3' in sparse.execution


def test_an_execution_that_is_gone_leaves_plain_parameters():
    model = convolution()
    masks = execute(model)[0].masks
    execution = SparseExecution(model, masks, 'sparse')
    later = SparseExecution(model, masks, 'sparse')
    execution.detach()
    assert type(model[0].weight) is not nn.Parameter
    del later
    assert {type(p) for p in model.parameters()} == {nn.Parameter}
    assert type(model[3]) is nn.MaxPool2d
    assert not any(vars(p) for p in model.parameters())
