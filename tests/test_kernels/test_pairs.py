"""Filters that share their places, as structure ``Block`` gives them."""

import copy

import pytest
import torch
from torch import nn

import sift_mm
from sift_mm.deploy import to_sparse
from sift_mm.kernels import Geometry, make_pattern
from sift_mm.kernels.pattern import forward_layout, is_paired


def test_the_nonzeros_of_a_pair_alternate():
    # Filters 0 and 1 read channels 0 and 2; the odd last one channel 1.
    mask = torch.tensor([[1, 0, 1], [1, 0, 1], [0, 1, 0]]).bool()
    geometry = Geometry.of((1, 1))
    row, position, index = make_pattern(mask[..., None, None], geometry)[:3]
    assert row[:-1].tolist() == [0, 2, 4, 5]
    assert index.tolist() == [0, 3, 2, 5, 7]
    layout = forward_layout(geometry, 3)
    plane = layout.tile_rows * 2
    assert position.tolist() == [0, 0, 2 * plane, 2 * plane, plane]
    assert row[-1] == layout.in_pairs.signature(3) != layout.signature(3)


def test_other_masks_are_indexed_filter_by_filter():
    mask = torch.tensor([[1, 0, 1], [1, 1, 0], [0, 1, 0]]).bool()
    geometry = Geometry.of((1, 1))
    row, _, index = make_pattern(mask[..., None, None], geometry)[:3]
    assert index.tolist() == [0, 2, 3, 4, 7]
    assert row[-1] == forward_layout(geometry, 3).signature(3)
    assert not is_paired(mask) and not is_paired(mask[:1])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 13, 3, 2, 1)
        self.linear = nn.Linear(13, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.conv(x).relu().mean((2, 3)))


@pytest.mark.parametrize('filters', [2, 4])
def test_training_updates_and_deployment_use_pairs(filters):
    torch.manual_seed(filters)
    first, models = Net(), {}
    for execution in ('dense', 'sparse'):
        model = models[execution] = copy.deepcopy(first)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        training = sift_mm.SparseTraining(
            model,
            optimizer,
            algorithm=dict(
                type='RigL', structure=dict(type='Block', filters=filters)
            ),
            include=['*.weight'],
            sparsity=0.5,
            interval=3,
            steps=20,
            execution=execution,
        )
        before = copy.deepcopy(training.masks)
        source = torch.Generator().manual_seed(0)
        for _ in range(10):
            optimizer.zero_grad()
            model(
                torch.randn(4, 6, 9, 8, generator=source)
            ).square().mean().backward()
            training.step()
        masks = training.masks
        assert any(not torch.equal(masks[n], before[n]) for n in masks)
        assert all(is_paired(mask) for mask in masks.values())
    for one, other in zip(
        models['sparse'].parameters(),
        models['dense'].parameters(),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    weight = models['sparse'].conv.weight
    use = next(iter(weight.execution._uses.values()))
    assert use.pattern[0][-1] == forward_layout(use.geometry, 6).in_pairs.at(
        0.5
    ).signature(13)
    sparse = to_sparse(copy.deepcopy(models['dense']).eval())
    x = torch.randn(3, 6, 9, 8)
    torch.testing.assert_close(sparse(x), models['dense'].eval()(x))
    assert isinstance(sparse.conv, nn.Conv2d) and sparse.conv.values.numel()
