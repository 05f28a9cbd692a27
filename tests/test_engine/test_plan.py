"""The sparsity of a run: one number, matched to the FLOPs of the twin."""

import re

import pytest
import torch
from mmpretrain.registry import MODELS
from mmseg.registry import MODELS as SEG
from torch import nn

from sift_mm.engine import SparseOptimWrapper
from sift_mm.engine.plan import MaskPlan, sparse_backbone
from sift_mm.flops import count_flops
from sift_mm.sparsity import (
    ERK,
    NM,
    SNIP,
    Block,
    ConstantFanIn,
    Explicit,
    MaskOptions,
    UniformPlus,
)


def backbone(registry=MODELS, **kwargs):
    node = dict(type='SparseIFTResNet', depth=18, family='wide', sparsity=0.75)
    return registry.build(node | kwargs)


def plan(distribution='Uniform', registry=SEG, **kwargs):
    # MMPretrain's asks for a number.
    with torch.device('meta' if registry is SEG else 'cpu'):
        network = backbone(registry, **kwargs)
        found = MaskPlan(network, MaskOptions(distribution=distribution))
        assert set(found.counts) == set(found.parameters)
    return network, found


# ResNet-18 at 224, in MMACs. Stem: 49 * 3 * 64 * 112^2 = 118.0. Stages: 4
# convolutions of 9 * 64^2 * 56^2 = 115.6 in the first; three of 115.6, one of
# half, and a shortcut of 64 * 128 * 28^2 = 6.4 in each other.
STEM = 49 * 3 * 64 * 112**2
CONVS = (4 + 3 * 3.5) * 9 * 64**2 * 56**2
SHORTCUTS = 3 * 64 * 128 * 28**2


@pytest.mark.parametrize(
    'family, density',
    [
        # Twice as wide: two stems, everything else four times.
        ('wide', (CONVS + SHORTCUTS - STEM) / (4 * (CONVS + SHORTCUTS))),
        # Four branches; stem and shortcuts as they were, the latter sparse.
        ('parallel', (CONVS + SHORTCUTS) / (4 * CONVS + SHORTCUTS)),
    ],
)
def test_resnet18_against_a_count_by_hand(family, density):
    network, found = plan(family=family)
    assert count_flops(network.dense_twin(), (224, 224)).total == 2 * (
        STEM + CONVS + SHORTCUTS
    )
    assert found.solved_sparsity == pytest.approx(1 - density, abs=1e-9)
    assert found.nominal_sparsity == 0.75
    assert found.ratio == pytest.approx(1, abs=1e-5)


def test_a_classifier_grows_along_and_is_matched_too():
    model = MODELS.build(
        dict(
            type='ImageClassifier',
            neck=dict(type='GlobalAveragePooling'),
            head=dict(
                type='LinearClsHead', num_classes=10000, in_channels=1024
            ),
            backbone=backbone(),
        )
    )
    found = MaskPlan(model)
    # 1024 in place of 512 features, to 10,000 classes: 5.12 MMACs more.
    density = (CONVS + SHORTCUTS - STEM - 512 * 10000) / (
        4 * (CONVS + SHORTCUTS)
    )
    assert found.solved_sparsity == pytest.approx(1 - density, abs=1e-9)
    whole, alone = (
        count_flops(m, (224, 224), **kw).sparse(
            {
                name.removeprefix(prefix): share
                for name, share in found.densities.items()
            }
        )
        for m, kw, prefix in (
            (model, dict(mode='tensor'), ''),
            (model.backbone, {}, 'backbone.'),
        )
    )
    dense = 2 * (STEM + CONVS + SHORTCUTS + 512 * 10000)
    assert whole / dense == pytest.approx(1, abs=1e-5)
    assert alone / dense < 0.995


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(sparsity=0.5),
        dict(distribution=UniformPlus()),
        dict(sparsity=0.9),
        dict(depth=50),
        dict(registry=MODELS, type='SparseIFTResNet_CIFAR'),
        dict(family='parallel'),
        dict(family='parallel', distribution=UniformPlus()),
        dict(family='factorized', sparse_factors='u'),
        dict(family='doped', depth=50),
        dict(family='wide_factorized', sparse_factors='both'),
        dict(
            deep_stem=True,
            strides=(1, 2, 1, 1),
            dilations=(1, 1, 2, 4),
        ),
    ],
)
def test_whole_backbones_match_within_a_thousandth(kwargs):
    _, found = plan(**dict(distribution=ERK()) | kwargs)
    assert abs(found.ratio - 1) < 1e-3
    assert set(found.densities) == set(found.counts)


@pytest.mark.parametrize('depth, sparsity', [(18, 0.5), (18, 0.9), (50, 0.75)])
def test_wide_factorized_matches_by_its_ranks(depth, sparsity):
    network, found = plan(
        family='wide_factorized', depth=depth, sparsity=sparsity
    )
    assert not found.parameters and not found.counts
    own, dense = (
        count_flops(m, (224, 224)).total
        for m in (network, network.dense_twin())
    )
    assert own / dense == found.ratio == pytest.approx(1, abs=1e-3)


# At 0.75, each layer's FLOPs as the formula's rounding leaves them: stems
# and shortcuts make the rest.
@pytest.mark.parametrize(
    'family, low, high',
    [
        # One stem of 118.0 more than the dense network's 1813.6.
        ('wide', 1.064, 1.066),
        ('parallel', 0.99, 1),
        ('doped', 0.98, 1),
        ('wide_factorized', 1.06, 1.08),
    ],
)
def test_nominal_keeps_the_number_and_says_what_it_costs(family, low, high):
    _, found = plan(family=family, flops='nominal')
    assert found.solved_sparsity == 0.75
    assert low < found.ratio < high


def test_an_explicit_distribution_is_not_matched():
    _, found = plan(Explicit({'*': 0.5}))
    assert found.solved_sparsity == 0.75
    assert found.ratio > 1.9


@pytest.mark.parametrize('family', ['wide', 'wide_factorized'])
def test_a_budget_out_of_reach_is_an_error_with_the_nearest(family):
    # At a wide enough stem, the stem alone costs more than the budget.
    kwargs = dict(base_channels=8, stem_channels=64, family=family)
    words = (
        r'nearest that it can have is 2\.\d+ of the budget'
        if family == 'wide'
        else r'stem alone costs 2\.\d+ of the dense FLOPs'
    )
    with pytest.raises(ValueError, match=words) as e:
        plan(sparsity=0.9, **kwargs)
    nearest = float(re.search(r'can meet it is ([\d.]+);', str(e.value))[1])
    plan(sparsity=nearest, **kwargs)
    with pytest.raises(ValueError):
        plan(sparsity=nearest + 0.01, **kwargs)


def test_masks_on_too_little_are_an_error():
    network = backbone(base_channels=16, family='parallel')
    with pytest.raises(ValueError, match='Mask more layers'):
        _ = MaskPlan(network, MaskOptions(include=['layer1.0.conv1.*'])).counts


def test_two_backbones_are_refused():
    names = ('student', 'teacher')
    model = nn.ModuleDict({n: backbone(base_channels=2) for n in names})
    with pytest.raises(ValueError, match='student.*teacher'):
        sparse_backbone(model)


def test_a_sparse_network_without_a_hook_does_not_train():
    model = backbone(base_channels=2)
    wrapper = SparseOptimWrapper(torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(RuntimeError, match='SparseTrainingHook'):
        wrapper.initialize_count_status(model, 0, 10)
    wrapper.has_hook = True
    wrapper.initialize_count_status(model, 0, 10)


def structured(structure, distribution='Uniform'):
    rule = dict(type='RigL', structure=structure)
    return MaskOptions(algorithm=rule, distribution=distribution)


@pytest.mark.parametrize(
    'structure, distribution',
    [(Block(4), 'Uniform'), (ConstantFanIn(), 'ERK')],
)
def test_flops_are_solved_for_the_counts_of_a_structure(
    structure, distribution
):
    with torch.device('meta'):
        network = backbone(SEG)
        found = MaskPlan(network, structured(structure, distribution))
        plain = MaskPlan(network, MaskOptions(distribution=distribution))
    ratios = [
        found.budget.ratio(found.densities_of(found._fit(s)))
        for s in (plain.solved_sparsity, found.solved_sparsity)
    ]
    assert found.ratio == ratios[1]
    # Rounding alone would miss by more.
    assert abs(ratios[1] - 1) <= abs(ratios[0] - 1)
    assert abs(ratios[1] - 1) < 2e-4
    for name, count in found.counts.items():
        shape = found.shapes[name]
        assert structure.fit(shape, count) == count


def test_a_structure_of_one_density_has_the_flops_that_it_has():
    words = r"fixes the density .* are 1\.\d+ of .*flops='nominal'"
    with torch.device('meta'):
        matched = MaskPlan(backbone(SEG), structured(NM(1, 4)))
        with pytest.raises(ValueError, match=words):
            assert matched.counts
        network = backbone(SEG, flops='nominal')
        found = MaskPlan(network, structured(NM(1, 4)))
        counts = found.counts
    assert counts == {n: p.numel() // 4 for n, p in found.parameters.items()}
    # Two stems, as in the count by hand; all else costs the same.
    cost = CONVS + SHORTCUTS + STEM
    assert found.ratio == pytest.approx(1 + STEM / cost, abs=1e-9)
    wrong = MaskPlan(network, structured(NM(2, 4)))
    with pytest.raises(ValueError, match=r'leaves 0\.5 .* leave 0\.25; excl'):
        assert wrong.counts
    with pytest.raises(ValueError, match='of the weights or all of them'):
        assert MaskPlan(network, structured(NM(1, 4), 'ERK')).counts


def grouped(network, **groups):
    options = MaskOptions(groups={f'*{k}*': v for k, v in groups.items()})
    return MaskPlan(network, options)


def test_flops_are_solved_around_the_groups():
    # Two stems and half of the last stage, four times as large, are fixed; the
    # other layers take what they leave of the dense network's FLOPs.
    last = 3.5 * CONVS / 14.5 + SHORTCUTS / 3
    rest = CONVS + SHORTCUTS - last
    density = (CONVS + SHORTCUTS - STEM - 4 * last / 2) / (4 * rest)
    with torch.device('meta'):
        network = backbone(SEG)
        rule = dict(type='RigL', structure=NM(2, 4))
        found = grouped(network, layer4=dict(algorithm=rule))
    assert found.ratio == pytest.approx(1, abs=1e-5)
    for name, parameter in found.parameters.items():
        share = 0.5 if name.startswith('layer4') else density
        assert found.counts[name] == round(share * parameter.numel())
    with torch.device('meta'):
        plain = MaskPlan(network)
        same = grouped(network, layer4=dict(algorithm='Static'))
    assert same.counts == plain.counts
    whole = grouped(network, layer=dict(sparsity=0.5))
    words = r"the budget is .* The groups' own sparsities are kept"
    with torch.device('meta'), pytest.raises(ValueError, match=words):
        assert whole.counts


def test_scores_of_the_whole_network_have_the_flops_of_the_budget():
    torch.manual_seed(0)
    network = backbone(SEG, base_channels=8, stem_channels=8)
    network.masks_attached = True
    image = torch.randn(2, 3, 64, 64)
    found = MaskPlan(network, MaskOptions(init=SNIP()))
    masks = found.draw(0, passes=[lambda: network(image)[-1].square().sum()])
    counts = masks.counts()
    assert counts != found.counts
    assert found.budget.ratio(found.densities_of(counts)) == pytest.approx(
        1, abs=1e-4
    )


def test_groups_of_all_layers_need_no_other_sparsity():
    groups = {'*': dict(sparsity=0.75)}
    options = MaskOptions(groups=groups, include=['*weight'])
    found = MaskPlan(nn.Linear(8, 8), options)
    assert (found.nominal_sparsity, found.counts) == (0.0, {'weight': 16})
