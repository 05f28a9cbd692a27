"""The numbers of the demo's table, worked out by hand."""

import pytest
import torch
from torch import nn

from sift_mm.analysis import summarize


class Net(nn.Module):
    """A 3x3 convolution on 8 x 8 pixels, and a linear layer on the mean."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.ReLU()
        )
        self.head = nn.Linear(4, 10)

    def forward(self, x):
        """Scores."""
        return self.head(self.body(x).mean((2, 3)))


def test_flops_and_parameters_under_a_mask():
    mask = torch.zeros(4, 3, 3, 3, dtype=torch.bool)
    mask.view(-1)[:27] = True  # A quarter of 108.
    summary = summarize(Net(), (8, 8), {'body.0.weight': mask})
    conv = 2 * 108 * 64  # 2 x MACs: 108 weights at 64 positions.
    head = 2 * 40
    assert summary.count.total == conv + head
    assert summary.flops() == conv / 4 + head
    assert summary.flops('body') == conv / 4
    assert summary.flops('head') == head
    assert summary.parameters == 108 + 50
    assert summary.active == 27 + 50
    assert summary.density == 0.25


def test_without_masks_everything_is_active():
    summary = summarize(Net(), (8, 8))
    assert summary.flops() == summary.count.total
    assert summary.active == summary.parameters
    assert summary.density == 1


def test_masks_of_another_model_are_refused():
    with pytest.raises(KeyError, match='other.weight'):
        summarize(Net(), (8, 8), {'other.weight': torch.ones(1).bool()})
