"""Networks under masks beside dense copies, compared by values."""

import copy

import torch
import torch.nn.utils.parametrize
from torch import nn

import sift_mm

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
