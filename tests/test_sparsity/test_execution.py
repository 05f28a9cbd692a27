"""Training through the sparse operators against plain PyTorch's own."""

import copy
import gc
import itertools
import re

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock

import sift_mm
from helpers.masked_training import (
    adamw,
    assert_alike,
    batch,
    events,
    network,
    run,
    sgd,
    training,
)
from sift_mm.kernels import (
    Geometry,
    make_pattern,
    sparse_conv2d,
)
from sift_mm.sparsity import SparseTraining
from sift_mm.sparsity import execution as execution_module


@pytest.mark.parametrize(
    'optimizer, algorithm', [(sgd, 'RigL'), (adamw, 'SET')]
)
def test_fifty_steps_end_where_dense_ones_do(optimizer, algorithm):
    parts = [
        run(training(mode, optimizer=optimizer, algorithm=algorithm), 50)
        for mode in ('sparse', 'dense')
    ]
    # Ten updates took place, the same ones.
    first = training('dense', algorithm=algorithm)[2].masks
    assert any(
        not torch.equal(mask, first[name])
        for name, mask in parts[0][2].masks.items()
    )
    # Of either optimizer 3e-8 at most on AVX2, 1.2e-7 without: fifty steps of
    # 1e-3, from gradients that are rounded at 1e-7 of themselves. Adam would
    # take steps of full size from gradients that are nothing but rounding,
    # such as those of a bias before a norm, which the network does not have.
    assert_alike(*parts, rtol=1e-5, atol=1e-6)


def test_every_mixture_of_products_has_the_gradients_of_float64():
    seed = 3
    print('seed', seed)
    generator = torch.Generator().manual_seed(seed)
    rounding = dict(rtol=1e-4, atol=1e-4)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    cases = [
        # Rows of linear layers, of Conv1D the last; then convolutions.
        (draw(9, 5), draw(7, 5), (1, 1), (0,) * 4, False),
        (draw(9, 5), draw(5, 7), (1, 1), (0,) * 4, True),
        (draw(2, 5, 8, 7), draw(7, 5, 3, 3), (2, 1), (1, 1, 1, 1), False),
        (draw(2, 5, 8, 7), draw(7, 5, 2, 4), (1, 1), (1, 2, 0, 1), False),
    ]
    for x, weight, stride, padding, transposed in cases:
        weight = weight * (draw(*weight.shape) > 0.5)
        kernel = tuple(weight.shape[2:]) or (1, 1)
        geometry = Geometry.of(kernel, stride, padding)
        mask = (weight != 0).view(*weight.shape[:2], *kernel)
        pattern = make_pattern(mask, geometry)
        bias = draw(7)

        exact = [t.double().requires_grad_() for t in (x, weight, bias)]
        if transposed:
            wanted = torch.addmm(exact[2], *exact[:2])
        elif x.ndim == 2:
            wanted = F.linear(*exact)
        else:
            padded = F.pad(exact[0], padding)
            wanted = F.conv2d(padded, *exact[1:], stride=stride)
        grad = torch.randn(wanted.shape, generator=generator)
        wanted_grads = torch.autograd.grad(wanted, exact, grad.double())

        for choice in itertools.product([True, False], repeat=3):
            own = [t.clone().requires_grad_() for t in (x, weight, bias)]
            numbers = geometry.numbers()
            rest = choice, False, transposed
            out = sparse_conv2d(*own, pattern, numbers, *rest)
            torch.testing.assert_close(out.double(), wanted, **rounding)
            found = torch.autograd.grad(out, own, grad)
            for i, (one, other) in enumerate(
                zip(found, wanted_grads, strict=True)
            ):
                if i == 1 and choice[2]:  # At the active positions alone.
                    assert not one[weight == 0].any()
                    other = other * (weight != 0)
                torch.testing.assert_close(one.double(), other, **rounding)


def test_a_step_that_rigl_updates_on_has_the_dense_gradient(calls):
    parts = model, optimizer, sparse = training('sparse', interval=3)
    twin = training('dense', interval=3)
    layers = len(sparse.masks)
    for step in range(1, 7):
        calls.clear()
        for each in (parts, twin):
            each[1].zero_grad()
            for part in range(2):  # Both micro-batches of a step.
                images, labels = batch(2 * step + part)
                F.cross_entropy(each[0](images), labels).backward()
        due = step % 3 == 0
        assert calls == 2 * layers * [(True, True, not due)]
        for name, mask in sparse.masks.items():
            grad = sparse.masks.parameters[name].grad
            other = twin[2].masks.parameters[name].grad
            if not due:
                assert not grad[~mask].any()
                other = other * mask
            torch.testing.assert_close(grad, other, rtol=1e-3, atol=1e-5)
        sparse.step()
        twin[2].step()
    assert_alike(parts, twin, rtol=1e-3, atol=1e-5)


def test_a_step_that_overflows_changes_no_pattern_for_the_worse():
    parts = model, optimizer, sparse = training('sparse', interval=2)
    twin = training('dense', interval=2)
    for each in (parts, twin):
        scaler = torch.amp.GradScaler('cpu', init_scale=8.0)
        for step in range(6):
            each[1].zero_grad()
            images, labels = batch(step)
            scaler.scale(F.cross_entropy(each[0](images), labels)).backward()
            if step == 1:
                each[0][12].bias.grad[0] = float('inf')
            each[2].step(scaler)
    assert_alike(parts, twin, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('algorithm', ['SET', 'Static'])
def test_other_algorithms_never_take_the_dense_gradient(calls, algorithm):
    run(training('sparse', algorithm=algorithm), 6)
    assert set(calls) == {(True, True, True)}


@pytest.mark.parametrize('family', ['parallel', 'factorized', 'doped', 'wide'])
def test_all_members_train_alike(family):
    def make():
        torch.manual_seed(5)
        model = nn.Sequential(
            nn.Conv2d(6, 16, 3, padding=1),
            BasicBlock(16, 16),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 4),
        )
        sift_mm.transform(model, family, 0.75, exclude=['0', '4'])
        return model

    parts = [run(training(mode, make()), 12) for mode in ('sparse', 'dense')]
    assert re.search(r'(\d) of \1 masked', parts[0][2].execution)
    assert_alike(*parts, rtol=1e-3, atol=1e-4)


def test_foreign_weights_are_tested_dense_and_their_own_sparse(calls):
    # EMAHook puts averages in place so, which changes no version.
    model, _, sparse = run(training('sparse'), 6)
    images, _ = batch(0)
    average = copy.deepcopy(model)
    torch.manual_seed(2)
    for weight in average.parameters():
        weight.data.add_(0.01 * torch.randn_like(weight))
    average.eval()
    model.eval()
    with torch.no_grad():
        own = model(images)
    assert calls[-1] == (True, False, False)
    torch.testing.assert_close(own, copy.deepcopy(model)(images))
    before = [p.detach().clone() for p in model.parameters()]
    versions = [p._version for p in model.parameters()]
    for weight, other in zip(
        model.parameters(), average.parameters(), strict=True
    ):
        weight.data.copy_(other.data)
    assert versions == [p._version for p in model.parameters()]
    # With gradients, without, and in training mode without.
    wanted = average(images)
    torch.testing.assert_close(model(images), wanted)
    with torch.inference_mode():
        torch.testing.assert_close(model(images), wanted)
    grads = [
        torch.autograd.grad(each(images).square().sum(), each.parameters())
        for each in (model, average)
    ]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        one, other = copy.deepcopy(model).train(), model.train()
        torch.testing.assert_close(one(images), other(images))
    for weight, other in zip(model.parameters(), before, strict=True):
        weight.data.copy_(other)


def test_what_cannot_run_sparse_is_named():
    model = nn.Sequential(
        nn.Conv2d(6, 12, 3, groups=2),
        nn.Conv2d(12, 12, 9, padding=4),
        nn.ConvTranspose2d(12, 12, 3),
        nn.Conv2d(12, 12, 3),
        nn.Flatten(),
        nn.Linear(192, 4),
    )
    model[3].to(torch.float64)
    kwargs = dict(include=['[0-3].weight'], sparsity=0.5, steps=9, interval=3)
    optimizer = sgd(model.parameters())
    with pytest.raises(ValueError, match="execution='sparse' is not avail"):
        SparseTraining(model, optimizer, execution='sparse', **kwargs)
    text = SparseTraining(model, optimizer, **kwargs).execution
    for words in (
        '0 of 4 masked layers',
        '1 grouped (0)',
        'its kernel of 9 is larger than 7 (1)',
        '1 of the kind ConvTranspose2d (2)',
        '1 of float64 (3)',
    ):
        assert words in text
    with pytest.raises(ValueError, match="one of .*'dense'; got 'fast'"):
        SparseTraining(network(), optimizer, execution='fast', **kwargs)


def test_without_kernels_all_runs_dense_and_says_so(monkeypatch):
    monkeypatch.setattr(
        execution_module, 'why_unavailable', lambda: 'no C++ compiler'
    )
    parts = run(training('auto'), 3)
    assert '5 without kernels (no C++ compiler) (0, ...)' in parts[2].execution
    assert_alike(parts, run(training('dense'), 3), rtol=0, atol=0)
    with pytest.raises(ValueError, match='without kernels'):
        training('sparse')


def test_autocast_runs_dense(calls):
    model, _, sparse = training('sparse')
    images, labels = batch(0)
    with torch.autocast('cpu', torch.bfloat16):
        F.cross_entropy(model(images), labels).backward()
    sparse.step()
    assert not calls
    assert '5 under autocast' in sparse.execution


def test_a_compiled_network_has_no_graph_break():
    parts = model, optimizer, sparse = training('sparse', interval=2)
    twin = training('sparse', interval=2)
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    for step in range(6):  # Across updates, whose steps differ.
        images, labels = batch(step)
        for each, call in ((parts, compiled), (twin, twin[0])):
            each[1].zero_grad()
            F.cross_entropy(call(images), labels).backward()
            each[2].step()
    # One for steps that RigL updates on, one for all others; no mask has its
    # own, although a strided layer's shares its weights out differently.
    assert counters['stats']['unique_graphs'] == 2
    assert_alike(parts, twin, rtol=1e-3, atol=1e-5)
    model.eval(), twin[0].eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), twin[0](images))
        # An average in place of the weights, which no guard sees.
        for p, q in zip(model.parameters(), twin[0].parameters(), strict=True):
            p.data.add_(0.01)
            q.data.add_(0.01)
        dense = copy.deepcopy(model)
        torch.testing.assert_close(compiled(images), dense(images))
        torch.testing.assert_close(twin[0](images), dense(images))


@pytest.mark.parametrize('momentum', [0.1, None])
def test_wide_activations_are_normed_and_pooled_by_kernels_too(momentum):
    def trained(mode):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8, momentum=momentum),
            nn.MaxPool2d(3, 2, 1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.BatchNorm2d(8, affine=False),  # Stays PyTorch's.
            nn.MaxPool2d(2, ceil_mode=True),  # So does this.
        )
        parts = training(mode, model, include=['*.weight'], sparsity=0.75)
        x = torch.randn(2, 3, 11, 9, requires_grad=True)

        def run():
            for _ in range(3):
                model(x).square().sum().backward()

        ran, names = events(run), ('batch_norm', 'max_pool2d')
        return parts, x.grad, [ran.get(f'sift_mm::{n}', 0) for n in names]

    parts, gradient, counts = trained('sparse')
    dense, expected, dense_counts = trained('dense')
    assert (counts, dense_counts) == ([3, 3], [0, 0])
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)
    model = parts[0]
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(
            buffer, dict(dense[0].named_buffers())[name]
        )
    kinds = [type(layer) for layer in dense[0]]
    assert [type(layer) for layer in copy.deepcopy(model)] == kinds
    images = torch.randn(2, 3, 11, 9)
    if momentum is not None:  # PyTorch compiles no average of all batches.
        compiled = torch.compile(model, fullgraph=True, backend='eager')
        torch.testing.assert_close(compiled(images), model(images))
    traced = torch.jit.trace(model, images, check_trace=False)
    assert 'sift_mm::' not in str(traced.inlined_graph)
    del parts
    gc.collect()
    assert [type(layer) for layer in model] == kinds


def test_norms_follow_the_last_of_several_executions():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    kwargs = dict(include=['*.weight'], sparsity=0.75)
    first = training('sparse', model, **kwargs)
    second = training('auto', model, **kwargs)
    x = torch.randn(2, 3, 8, 8)
    # None of the second's layers runs sparse before they are timed.
    wide = torch.randn(2, 8, 5, 5)
    assert torch.equal(model[1](wide), nn.BatchNorm2d(8)(wide))
    third = training('sparse', model, **kwargs)
    del first, second
    gc.collect()
    assert 'sift_mm::batch_norm' in events(lambda: model(x))
    del third


def test_a_norm_may_count_no_batches():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    parts = training('sparse', model, include=['*.weight'], sparsity=0.75)
    model[1].num_batches_tracked = None
    before = model[1].running_mean.clone()
    model(torch.randn(2, 3, 8, 8))
    assert not torch.equal(before, model[1].running_mean)
    del parts
