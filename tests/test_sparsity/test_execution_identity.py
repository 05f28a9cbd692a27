"""A layer runs sparse only if PyTorch's own function gets its own weight."""

import copy
import pickle
from functools import partial

import pytest
import torch
import torch.nn.utils.parametrize
from torch import nn
from torch.nn import functional as F

from helpers.dense_twins import (
    CLOSE,
    IMAGES,
    assert_equal,
    convolution,
    execute,
)
from sift_mm.errors import UserError
from sift_mm.kernels import executed_parameters, masked_layers
from sift_mm.sparsity import SparseExecution
from sift_mm.sparsity import execution as execution_module


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
    assert (
        '1 not used as the weight of conv2d, linear or addmm so far (3)'
        in (sparse.execution)
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


def test_a_parameter_is_made_of_an_executed_one():
    model = convolution()
    sparse, _ = execute(model)
    sparse.step()
    weight = model[0].weight
    made = nn.Parameter(weight, requires_grad=False)
    assert made.data_ptr() == weight.data_ptr() and not made.requires_grad
    assert type(weight.detach()) is torch.Tensor
    nn.utils.parametrizations.weight_norm(model[0])
    model[4].weight = nn.Parameter(model[4].weight)
    dense = copy.deepcopy(model)
    torch.testing.assert_close(model(IMAGES), dense(IMAGES), **CLOSE)
    assert pickle.loads(pickle.dumps(made)).shape == weight.shape


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
    def attach(plain, execution):
        if isinstance(plain, nn.MaxPool2d):
            raise KeyboardInterrupt
        executed_parameters.attach(plain, execution)

    model = convolution()
    with monkeypatch.context() as patch:
        patch.setattr(execution_module, 'attach', attach)
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
