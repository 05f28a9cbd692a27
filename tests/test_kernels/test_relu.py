"""ReLU with gradients in used memory, against PyTorch's."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from sift_mm.kernels import can_rectify, relu


@pytest.mark.parametrize('inplace', [False, True])
@pytest.mark.parametrize('shape', [(2, 3, 5, 7), (4, 8, 128, 128)])
def test_outputs_and_gradients_are_pytorchs_bit_for_bit(shape, inplace):
    torch.manual_seed(0)
    x = torch.randn(shape)
    x.view(-1)[:3] = torch.tensor([float('nan'), 0.0, -0.0])
    grad = torch.randn(shape)
    found = []
    for function in (relu, F.relu):
        leaf = x.clone().requires_grad_()
        before = leaf * 1  # A leaf is not written over.
        out = function(before, inplace)
        assert (out is before) == inplace
        out.backward(grad)
        found.append((out.detach(), leaf.grad))
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours.view(torch.int32), theirs.view(torch.int32))


def test_what_is_not_for_it_runs_in_pytorch():
    x = torch.randn(4, 6, 8, 10)
    others = [
        x.double(),
        x.to(memory_format=torch.channels_last),
        x[:, ::2],
        x.clone()[1:],
    ]
    for other in others:
        for inplace in (False, True):
            expected = F.relu(other.clone())
            assert torch.equal(relu(other.clone(), inplace), expected)
    # Autograd follows a view that is written over to what it is a view of.
    leaf = x.clone().requires_grad_()
    copy = leaf * 1
    relu(copy[1:3], True)
    copy.sum().backward()
    inside = torch.zeros_like(x, dtype=torch.bool)
    inside[1:3] = True
    assert torch.equal(leaf.grad, (~inside | (x > 0)).float())
    with FakeTensorMode():
        assert relu(torch.empty(8, 8, 128, 128), True).shape[2] == 128


def test_a_subclass_with_a_forward_of_its_own_is_left_alone():
    class Shifted(nn.ReLU):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input) + 1

    assert can_rectify(nn.ReLU()) and not can_rectify(Shifted())
    assert not can_rectify(nn.ReLU6())
