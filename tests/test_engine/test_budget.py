"""The sparsity of a run: one number, matched to the FLOPs of the twin."""

import pytest
import torch
from mmpretrain.registry import MODELS
from mmseg.registry import MODELS as SEG
from torch import nn

from sift_mm.analysis import count_flops
from sift_mm.engine import SparseOptimWrapper
from sift_mm.engine.budget import matched_sparsity, sparse_backbone
from sift_mm.sparsity import ERK, Explicit, Uniform, select_parameters


def solve(distribution=None, registry=MODELS, name='SparseIFTResNet',
          **kwargs):
    backbone = registry.build(dict(dict(
        type=name, depth=18, family='wide', sparsity=.75), **kwargs))
    shapes = {n: tuple(p.shape) for n, p in
              select_parameters(backbone).items()}
    found = matched_sparsity(backbone, shapes, distribution or Uniform(),
                             backbone.sparsity)
    return backbone, shapes, found


def test_resnet18_against_a_count_by_hand():
    # ResNet-18 at 224, in MMACs. Stem: 49 * 3 * 64 * 112^2 = 118.0. Stages:
    # 4 convolutions of 9 * 64^2 * 56^2 = 115.6 in the first; three of 115.6,
    # one of half, and a shortcut of 64 * 128 * 28^2 = 6.4 in each other.
    stem = 49 * 3 * 64 * 112**2
    conv = 9 * 64**2 * 56**2
    shortcut = 64 * 128 * 28**2
    blocks = 4 * conv + 3 * (3.5 * conv + shortcut)
    backbone, _, (sparsity, ratio) = solve()
    assert count_flops(backbone.dense_twin(), (224, 224)).total == 2 * (
        stem + blocks)
    # Twice as wide: 2 stems and 4 times the blocks at density d.
    density = (stem + blocks - 2 * stem) / (4 * blocks)
    assert sparsity == pytest.approx(1 - density, abs=1e-6)
    assert sparsity == pytest.approx(.7674, abs=1e-4)
    assert ratio == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize('distribution', [Uniform(), ERK()])
@pytest.mark.parametrize('kwargs', [
    dict(sparsity=.5), dict(sparsity=.9), dict(depth=34), dict(depth=50),
    dict(name='SparseIFTResNet_CIFAR'),
    dict(registry=SEG, deep_stem=True, strides=(1, 2, 1, 1),
         dilations=(1, 1, 2, 4)),
])
def test_whole_backbones_match_within_a_thousandth(kwargs, distribution):
    *_, (_, ratio) = solve(distribution, **kwargs)
    assert abs(ratio - 1) < 1e-3


def test_nominal_keeps_the_number_and_says_what_it_costs():
    *_, (sparsity, ratio) = solve(flops='nominal')
    assert sparsity == .75
    # One stem of 118.0 more than the dense network's 1813.6.
    assert ratio == pytest.approx(1 + 118.0 / 1813.6, abs=1e-3)


def test_an_explicit_distribution_is_not_matched():
    _, _, (sparsity, ratio) = solve(Explicit({'*': .5}))
    assert sparsity == .75
    assert ratio > 1.9


def test_a_budget_out_of_reach_is_an_error():
    # At width 1 the stem alone costs more than the budget.
    with pytest.raises(ValueError, match="flops='nominal'"):
        solve(base_channels=1, stem_channels=16)


def test_two_backbones_are_refused():
    model = nn.ModuleDict({
        name: MODELS.build(dict(type='SparseIFTResNet', depth=18,
                                base_channels=2, family='wide', sparsity=.5))
        for name in ('student', 'teacher')})
    with pytest.raises(ValueError, match='student.*teacher'):
        sparse_backbone(model)


@pytest.mark.parametrize('has_hook', [True, False])
def test_a_sparse_network_without_a_hook_does_not_train(has_hook):
    model = MODELS.build(dict(type='SparseIFTResNet', depth=18,
                              base_channels=2, family='wide', sparsity=.5))
    wrapper = SparseOptimWrapper(torch.optim.SGD(model.parameters(), .1))
    wrapper.has_hook = has_hook
    if has_hook:
        wrapper.initialize_count_status(model, 0, 10)
    else:
        with pytest.raises(RuntimeError, match='SparseTrainingHook'):
            wrapper.initialize_count_status(model, 0, 10)
