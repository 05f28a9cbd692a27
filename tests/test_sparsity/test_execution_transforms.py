"""Derivatives, exports, copies and layouts of networks that run sparse."""

import copy
import io
import pickle
from functools import partial

import onnxruntime
import pytest
import torch
import torch.nn.utils.parametrize
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from helpers.dense_twins import (
    CLOSE,
    IMAGES,
    assert_equal,
    convolution,
    execute,
)
from sift_mm.deploy import to_sparse


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


@pytest.mark.parametrize('copies', [False, True])
def test_the_network_and_its_sparse_copy_go_to_onnx(tmp_path, copies):
    model = convolution().eval()
    _, dense = execute(model)
    model = to_sparse(model, execution='sparse') if copies else model
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
        torch.testing.assert_close(model(x), dense(x), **CLOSE)
    for each in (model, dense):
        each.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(IMAGES), dense(IMAGES), **CLOSE)
    for each in (model, dense):
        each.double()
    x = IMAGES.double()
    torch.testing.assert_close(model(x), dense(x))
