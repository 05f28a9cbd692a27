"""Weights that are loaded, written or replaced while masks are on."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel

from helpers.mask_trainers import masked
from sift_mm.sparsity.watch import WeightWatch


def started(steps=3):
    """Return a network at density 0.1, trained for some steps, and masks."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 40, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(40, 40, 3),
        nn.Flatten(),
        nn.Linear(640, 5),
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    sparse = masked(model, optimizer=optimizer, steps=100, sparsity=0.9)
    for _ in range(steps):
        step(model, sparse)
    return model, sparse


def step(model, sparse):
    generator = torch.Generator().manual_seed(sparse.trainer.steps)
    weight = next(model.parameters())
    images = torch.randn(4, 3, 6, 6, generator=generator).to(weight)
    model.zero_grad()
    nn.functional.cross_entropy(model(images), torch.arange(4)).backward()
    return sparse.step()


def check(model, sparse):
    """Check that weights and slots outside the masks are zero."""
    for name, mask in sparse.masks.items():
        parameter = model.get_parameter(name)
        slots = sparse.optimizer.state[parameter].values()
        for tensor in (parameter.detach(), *slots):
            if tensor is not None:
                assert not tensor[~mask].any(), name


def dense_weights(model):
    return {n: torch.randn_like(p) for n, p in model.state_dict().items()}


def assign_data(model, layer):
    layer.weight.data = torch.randn_like(layer.weight)


@torch.no_grad()
def write(model, layer):
    layer.weight.copy_(torch.randn_like(layer.weight))


def write_one(layer):
    zeros = (layer.weight == 0).nonzero()
    layer.weight.data[tuple(zeros[len(zeros) // 3])] = 1.0


WRITES = {
    'load_state_dict': lambda m, _: m.load_state_dict(dense_weights(m)),
    'load of a part': lambda m, _: m.load_state_dict(
        {'2.weight': torch.randn(40, 40, 3, 3)}, strict=False
    ),
    'data =': assign_data,
    'copy_': write,
    'init': lambda _, layer: nn.init.kaiming_normal_(layer.weight),
    'reset_parameters': lambda _, layer: layer.reset_parameters(),
    'data.copy_': lambda _, layer: layer.weight.data.copy_(
        torch.randn_like(layer.weight)
    ),
    'data.normal_': lambda _, layer: layer.weight.data.normal_(),
    'nan': lambda _, layer: nn.init.constant_(layer.weight[0], float('nan')),
    'apply': lambda m, _: m.apply(
        lambda x: hasattr(x, 'weight') and nn.init.ones_(x.weight)
    ),
    'one weight': lambda _, layer: write_one(layer),
    'vector_to_parameters': lambda m, _: nn.utils.vector_to_parameters(
        torch.randn(sum(p.numel() for p in m.parameters())), m.parameters()
    ),
}


@pytest.mark.parametrize('name', WRITES)
def test_written_weights_are_masked_again_and_told(name):
    model, sparse = started()
    counts = sparse.masks.counts()
    WRITES[name](model, model[2])
    if name == 'nan':  # The step itself would spread what is active.
        model[2].weight.data[sparse.masks['2.weight']] = 0.1
    with pytest.warns(UserWarning, match='outside the masks of .*2.weight'):
        step(model, sparse)
    check(model, sparse)
    assert sparse.masks.counts() == counts
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        step(model, sparse)
    check(model, sparse)


def clip(model, _):
    for parameter in model.parameters():
        parameter.data.clamp_(-0.1, 0.1)
        nn.init.zeros_(parameter[0])


@pytest.mark.parametrize(
    'change',
    [
        clip,
        lambda m, _: m.load_state_dict(m.state_dict()),
        lambda m, _: m.double(),
        lambda m, _: m.to(torch.bfloat16),
        lambda m, _: m.to(memory_format=torch.channels_last),
        lambda m, _: m.eval(),
        lambda m, _: copy.deepcopy(m),
        lambda m, s: s.load_state_dict(s.state_dict()),
    ],
)
def test_what_leaves_zeros_alone_is_not_told(change):
    model, sparse = started(steps=0)
    optimizer = sparse.optimizer
    optimizer.param_groups[0]['momentum'] = 0.0
    step(model, sparse)
    change(model, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        step(model, sparse)
        step(model, sparse)
    check(model, sparse)


def test_slots_that_are_loaded_are_masked_too():
    model, sparse = started()
    state = copy.deepcopy(sparse.optimizer.state_dict())
    for slots in state['state'].values():
        slots['momentum_buffer'].normal_()
    sparse.optimizer.load_state_dict(state)
    step(model, sparse)
    check(model, sparse)


def test_a_write_to_a_large_layer_is_found_in_its_turn():
    masks = {'a': torch.rand(300, 300) < 0.5}
    weights = {'a': nn.Parameter(torch.zeros(300, 300))}
    watch = WeightWatch(masks, weights)
    watch.remember(torch.optim.SGD(weights.values()))
    assert not watch.find_strays()
    weights['a'].data[tuple((~masks['a']).nonzero()[-1])] = 1.0
    assert ['a'] in [watch.find_strays() for _ in range(6)]


class Noisy(torch.optim.SGD):
    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for parameter in group['params']:
                parameter.data.add_(0.001)


def test_another_optimizer_is_tried_and_guarded():
    model, sparse = started()
    counts = sparse.masks.counts()
    sparse.optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.5)
    step(model, sparse)
    check(model, sparse)
    assert sparse.masks.counts() == counts
    with pytest.raises(RuntimeError, match='outside the masks'):
        sparse.optimizer.step()
    sparse.optimizer = Noisy(model.parameters(), 0.1)
    with pytest.raises(TypeError, match='Noisy'):
        step(model, sparse)
    check(model, sparse)


def replace(model, sparse):
    model[2].weight = nn.Parameter(torch.randn(40, 40, 3, 3))


def replace_layer(model, sparse):
    model[2] = nn.Conv2d(40, 40, 3)


def reduce_groups(model, sparse):
    del sparse.optimizer.param_groups[0]['params'][0]


def shrink(model, sparse):
    model[4].weight.data = torch.randn(5, 64)


@pytest.mark.parametrize(
    'change, words',
    [
        (replace, "another parameter '2.weight'.*in place"),
        (replace_layer, "another parameter '2.weight'"),
        (
            lambda m, _: m.load_state_dict(dense_weights(m), assign=True),
            "another parameter '0.weight'.*assign=True",
        ),
        (
            lambda m, _: parametrizations.weight_norm(m[2]),
            "another parameter '2.weight'.*parametrization",
        ),
        (lambda m, _: m.to('meta'), "'0.weight'"),
        (reduce_groups, 'optimizer does not hold 0.weight'),
        (shrink, r"'4.weight' has shape \(5, 64\)"),
    ],
)
def test_what_is_replaced_is_refused_by_name(change, words):
    model, sparse = started()
    change(model, sparse)
    before = copy.deepcopy(dict(sparse.masks))
    with pytest.raises(ValueError, match=words):
        sparse.step()
    assert sparse.trainer.steps == 3
    for name, mask in sparse.masks.items():
        assert torch.equal(mask, before[name])


def test_an_average_is_masked_by_one_call():
    model, sparse = started(steps=0)
    average = AveragedModel(model)
    for _ in range(6):
        step(model, sparse)
        average.update_parameters(model)
    kept = {n: p.detach().clone() for n, p in average.named_parameters()}
    sparse.apply_masks(average)
    dropped = 0
    for name, mask in sparse.masks.items():
        weight = average.module.get_parameter(name).detach()
        dropped += int(kept[f'module.{name}'][~mask].count_nonzero())
        assert torch.equal(weight, kept[f'module.{name}'] * mask)
    assert dropped
    with pytest.raises(ValueError, match='Linear has no parameter 0.weight'):
        sparse.apply_masks(nn.Linear(2, 2))


@pytest.mark.parametrize('clip', [None, 0.01])
def test_sparse_gradients_beside_masks_train(clip):
    torch.manual_seed(0)
    embedding = nn.Embedding(50, 12, sparse=True)
    model = nn.Sequential(embedding, nn.Linear(12, 8))
    sparse = masked(model, include=['1.weight'])
    for _ in range(4):
        model.zero_grad()
        before = [p.detach().clone() for p in model.parameters()]
        model(torch.tensor([1, 1, 7])).square().mean().backward()
        grads = [p.grad.to_dense().clone() for p in model.parameters()]
        grads[1][~sparse.masks['1.weight']] = 0
        report = sparse.step(clip=clip)
        norm = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
        scale = min(1, clip / float(norm)) if clip else 1
        for p, old, grad in zip(
            [embedding.weight, model[1].bias],
            [before[0], before[2]],
            [grads[0], grads[2]],
            strict=True,
        ):
            torch.testing.assert_close(p.detach(), old - 0.1 * scale * grad)
    assert report is not None and report.skipped == ''
