"""Masks of transformers' Conv1D: those of a linear layer, transposed."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sift_mm
from helpers.hugging_face import Conv1D
from sift_mm.cli.publish_model import publish
from sift_mm.deploy import to_sparse
from sift_mm.sparsity.mask_table import mask_table

NM = dict(type='NM', n=1, m=4)
BLOCK = dict(type='Block', filters=4)
RUNS = {
    'SET': dict(algorithm='SET'),
    'N:M': dict(algorithm=dict(type='RigL', structure=NM), sparsity=0.75),
    'blocks': dict(algorithm=dict(type='RigL', structure=BLOCK)),
    'fan-in': dict(algorithm=dict(type='RigL', structure='ConstantFanIn')),
    'SRigL': dict(algorithm='SRigL'),
    'momentum': dict(algorithm='SNFS'),
    'density': dict(
        algorithm=dict(type='GMP', structure='ConstantFanIn'), init='TopK'
    ),
    'CHT': dict(algorithm='CHT'),
    'SynFlow': dict(
        algorithm=dict(type='Static', structure='ConstantFanIn'),
        init='SynFlow',
    ),
}


def networks():
    """Return one network of linear layers, and the same of Conv1D."""
    linear = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 8))
    turned = nn.Sequential(Conv1D(32, 12), nn.ReLU(), Conv1D(8, 32))
    for one, other in ((linear[0], turned[0]), (linear[2], turned[2])):
        other.weight.data.copy_(one.weight.t())
        other.bias.data.copy_(one.bias)
    return linear.double(), turned.double()


def train(model, start, x, **options):
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    passes = {}
    if options.get('init') == 'SynFlow':
        passes = dict(first_pass=lambda: model(x))
    options = dict(sparsity=0.8, include=['*.weight']) | options | passes
    sparse = sift_mm.SparseTraining(
        model, optimizer, steps=20, interval=3, seed=3, **options
    )
    if start is not None:
        model.load_state_dict(start[0])
        optimizer.load_state_dict(start[1])
        sparse.load_state_dict(start[2])
    for _ in range(8):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        sparse.step()
    parts = model, optimizer, sparse
    return sparse, copy.deepcopy([part.state_dict() for part in parts])


@pytest.mark.parametrize('name', RUNS)
def test_masks_are_those_of_the_linear_network(name):
    torch.manual_seed(0)
    linear, turned = networks()
    x = torch.rand(64, 12, dtype=torch.double) - 0.3
    starts = [None, None]
    for _ in range(2):  # The second time, resumed.
        runs = [
            train(model, start, x, **RUNS[name])
            for model, start in zip((linear, turned), starts, strict=True)
        ]
        starts = [start for _, start in runs]
        expected, found = (sparse.masks for sparse, _ in runs)
        for key, mask in expected.items():
            assert torch.equal(found[key], mask.t()), key
            assert 0 < mask.float().mean() < 0.5
        for key, weight in turned.named_parameters():
            old = linear.get_parameter(key)
            torch.testing.assert_close(
                weight, old.t() if weight.dim() > 1 else old
            )


def test_a_group_of_inputs_has_one_active_weight():
    sparse, _ = train(
        networks()[1], None, torch.rand(4, 12).double(), **RUNS['N:M']
    )
    mask = sparse.masks['0.weight']
    assert mask.shape == (12, 32)
    assert (mask.view(3, 4, 32).sum(1) == 1).all()


def test_a_structure_that_does_not_fit_names_the_layer():
    wide = dict(type='NM', n=1, m=16)
    with pytest.raises(ValueError, match='12 inputs, less than m=16'):
        train(
            networks()[1],
            None,
            torch.rand(4, 12).double(),
            algorithm=dict(type='RigL', structure=wide),
            sparsity=15 / 16,
        )


def test_sparse_kernels_train_it_as_dense_products_do():
    torch.manual_seed(0)
    network, x = networks()[1].float(), torch.rand(64, 12) - 0.3
    starts, models = [None, None], []
    for _ in range(2):  # The second time, resumed.
        models = [copy.deepcopy(network) for _ in range(2)]
        runs = [
            train(model, start, x, algorithm='RigL', execution=execution)
            for model, start, execution in zip(
                models, starts, ('sparse', 'dense'), strict=True
            )
        ]
        starts = [start for _, start in runs]
        sparse, dense = (run for run, _ in runs)
        assert '2 of 2 masked layers (forward 2, in' in sparse.execution
        for key, mask in dense.masks.items():
            assert torch.equal(sparse.masks[key], mask)
        for one, other in zip(*(m.parameters() for m in models), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def second_derivative(model, x):
    x = x.clone().requires_grad_()
    out = model(x).square().sum()
    return torch.autograd.grad(out, x, create_graph=True)[0]


def with_hooks(model, x):
    hooks = (
        model[0].register_forward_pre_hook(lambda _, args: (args[0] + 1,)),
        model[2].register_forward_hook(lambda *args: 2 * args[-1]),
    )
    out = model(x)
    for hook in hooks:
        hook.remove()
    return out


def with_patched_class(model, x):
    forward = Conv1D.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Conv1D, 'forward', lambda m, x: forward(m, x).cos())
        return model(x)


def with_another_weight(model, x):
    return torch.func.functional_call(model, {'2.weight': WEIGHT}, (x,))


WEIGHT = torch.linspace(-1, 1, 256).view(32, 8)
#: By name: a use of the network, and how many of its layers run sparse.
USES = {
    'call': (lambda m, x: m(x), 2),
    'batches': (lambda m, x: m(x.view(2, -1, 12)), 2),
    'one row': (lambda m, x: m(x[0]), 2),
    'no rows': (lambda m, x: m(x[:0]), 0),
    'hooks': (with_hooks, 2),
    'patch': (with_patched_class, 2),
    'other weight': (with_another_weight, 1),
    'second derivative': (second_derivative, 2),
    'vmap': (lambda m, x: torch.func.vmap(m)(x), 0),
    'jvp': (lambda m, x: torch.func.jvp(m, (x,), (x.cos(),))[1], 0),
    'autocast': (torch.autocast('cpu')(lambda m, x: m(x)), 0),
    'linear': (lambda m, x: F.linear(m[0](x), m[0].weight), 2),
    'sum': (lambda m, x: torch.addmm(m[2].bias, WEIGHT.t(), m[2].weight), 1),
    'scaled sum': (
        lambda m, x: torch.addmm(m[0].bias, x, m[0].weight, beta=2),
        0,
    ),
    'turned': (
        lambda m, x: torch.addmm(m[0].bias, x[:, :8], m[2].weight.t()),
        0,
    ),
}


@pytest.mark.parametrize('name', USES)
@pytest.mark.parametrize('training', [True, False])
def test_a_sparse_conv1d_gives_what_the_dense_one_does(name, training, calls):
    torch.manual_seed(0)
    model, x = networks()[1].float(), torch.rand(6, 12) - 0.3
    sparse, _ = train(model, None, x, algorithm='SET', execution='sparse')
    model.train(training)
    dense, (use, ran) = copy.deepcopy(model), USES[name]
    calls.clear()
    out = use(model, x)
    assert calls == ran * [(True, training, training)]
    wanted = use(dense, x)
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-6)
    for each, result in ((model, out), (dense, wanted)):
        each.zero_grad()
        result.float().square().sum().backward()
    for key in dict(model.named_parameters()):
        grads = [each.get_parameter(key).grad for each in (model, dense)]
        if training and key in sparse.masks and grads[1] is not None:
            grads = [grad * sparse.masks[key] for grad in grads]
        torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('name', USES)
def test_a_sparse_copy_gives_what_the_dense_network_does(name):
    torch.manual_seed(0)
    model, x = networks()[1].float(), torch.rand(6, 12) - 0.3
    train(model, None, x, algorithm='SET')
    sparse = to_sparse(model.eval(), execution='sparse')
    assert len(sparse.sparse_report.sparse) == 2
    use, _ = USES[name]
    torch.testing.assert_close(use(sparse, x), use(model, x))
    if name == 'call':
        compiled = torch.compile(sparse, backend='eager', fullgraph=True)
        for given in (x, x.clone().requires_grad_()):
            torch.testing.assert_close(compiled(given), model(x))
    if name == 'patch':
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Conv1D, 'forward', lambda m, x: x)
            with pytest.raises(ValueError, match='a forward method of its'):
                to_sparse(model)
    for key, weight in model.named_parameters():
        assert torch.equal(sparse.get_parameter(key), weight)


def test_a_file_tells_inputs_from_outputs(tmp_path):
    tables = []
    x = torch.rand(4, 12).double()
    for i, model in enumerate(networks()):
        sparse, _ = train(model, None, x, sparsity=0.95)
        path = tmp_path / f'{i}.pth'
        state = {'state_dict': model.state_dict()}
        torch.save(state | {'sparse_training': sparse.state_dict()}, path)
        tables.append(mask_table(path)['layers'])
        path = publish(str(path), tmp_path / 'slim.pth', small=True)
        tables.append(mask_table(path)['layers'])
    shapes = [[row.pop('shape') for row in rows] for rows in tables]
    assert shapes[0] == [shape[::-1] for shape in shapes[2]]
    for row, *others in zip(*tables, strict=True):
        # Some of 32 filters are dead, and others of the 12 or 32 inputs.
        assert row['outputs'] != row['inputs'] != row['dead_inputs']
        for other in others:
            history = dict(itop=other['itop'], doc=other['doc'])
            assert other == pytest.approx(row | history)
