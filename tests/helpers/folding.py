"""Trained norms, and checks that folding keeps the outputs."""

import torch
from torch import nn

from sift_mm.deploy import fold
from sift_mm.layers import Composite

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


SIZES = {
    nn.Linear: (),
    nn.Conv1d: (9,),
    nn.Conv2d: (9, 8),
    nn.Conv3d: (5, 6, 7),
}


@torch.no_grad()
def trained(model):
    """Give every norm the statistics and weights of a trained network."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.running_mean is not None:
                module.running_mean.uniform_(-1, 1)
                module.running_var.uniform_(0.5, 2)
            if module.weight is not None:
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-1, 1)
        elif isinstance(getattr(module, 'bias', None), torch.Tensor):
            module.bias.uniform_(-1, 1)
    model.eval()  # OpenMMLab's backbones return nothing here.
    return model


def assert_same(after, before):
    # To the scale of the output, which random statistics leave open.
    assert after.dtype == before.dtype and before.abs().max() > 0.1
    error = (after - before).abs().max() / before.abs().max().clamp(min=1)
    assert error < TOLERANCE[before.dtype], float(error)


@torch.no_grad()
def assert_folds_to_the_same(model, x, **kwargs):
    before = model(x)
    report = fold(model, **kwargs)
    assert_same(model(x), before)
    return report


def no_statistics(channels):
    return nn.BatchNorm2d(channels, track_running_stats=False)


def assert_all_that_remains_is_named(model, report):
    kinds = (Composite, nn.modules.batchnorm._BatchNorm)
    assert report.kept.keys() == {
        n for n, m in model.named_modules() if isinstance(m, kinds)
    }
    assert all(report.kept.values())
