"""Masks of transformers' Conv1D: those of a linear layer, transposed."""

import copy

import pytest
import torch
from torch import nn

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


def test_it_runs_dense_and_says_so():
    model = networks()[1].float()
    x = torch.rand(4, 12)
    sparse, _ = train(model, None, x)
    assert '2 of the kind Conv1D' in sparse.trainer.execution.describe()
    with pytest.raises(ValueError, match='2 of the kind Conv1D'):
        train(networks()[1].float(), None, x, execution='sparse')
    with pytest.raises(ValueError, match='neither a linear layer nor'):
        to_sparse(model.eval(), sparse.masks)


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
