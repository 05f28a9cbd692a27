"""Every member of the family in runs of the three libraries."""

import re
import sys

import pytest
import torch
from mmdet.registry import MODELS as DET
from mmpretrain.registry import MODELS as CLS
from mmseg.registry import MODELS as SEG

from helpers.sparse_runs import assert_masked, probed, train
from helpers.toy_runs import assert_same
from sift_mm.cli import test as test_tool
from sift_mm.cli import train as train_tool
from sift_mm.config.loading import load_config
from sift_mm.layers import families

SCOPES = ['mmdet', 'mmseg', 'mmpretrain']


def backbone_state(checkpoint):
    return {
        k.removeprefix('backbone.'): v
        for k, v in checkpoint['state_dict'].items()
        if k.startswith('backbone.')
    }


@pytest.mark.parametrize(
    'scope, family, algorithm',
    [
        # Each pair of two of the three.
        (scope, family, algorithm)
        for family, algorithms in {
            'wide': ('Static', 'SET', 'RigL'),
            'parallel': ('RigL', 'Static', 'SET'),
            'factorized': ('SET', 'RigL', 'Static'),
            'doped': ('RigL', 'SET', 'Static'),
        }.items()
        for scope, algorithm in zip(SCOPES, algorithms, strict=True)
    ],
)
def test_members_train_with_every_algorithm(
    scope, family, algorithm, make_config, tmp_path
):
    config = make_config(
        scope,
        f"custom_hooks[0]['algorithm'] = '{algorithm}'\n"
        + ("train_cfg['max_epochs'] = 1\n" if scope == 'mmpretrain' else ''),
        family,
    )
    checkpoint = train(config, tmp_path / 'run')
    records = probed(tmp_path / 'run')
    assert_masked(checkpoint, records)
    moved = len({r['digest'] for r in records})
    assert moved == (1 if algorithm == 'Static' else len(records))
    if family == 'wide':
        # What was saved loads into the unmodified ResNet of that width.
        kwargs = dict(depth=18, base_channels=16, stem_channels=16)
        ours = scope == 'mmpretrain'
        kind = 'ResNet_CIFAR' if ours else 'ResNet'
        for library in [CLS] if ours else [DET, SEG, CLS]:
            library.build(dict(type=kind, **kwargs)).load_state_dict(
                backbone_state(checkpoint), strict=True
            )


@pytest.mark.parametrize('scope', SCOPES)
def test_wide_factorized_trains_without_masks(scope, make_config, tmp_path):
    config = make_config(scope, family='wide_factorized')
    checkpoint = train(config, tmp_path / 'run')
    assert 'sparse_training' not in checkpoint
    log = next((tmp_path / 'run').glob('*/*.log')).read_text()
    ratio = re.search(r'needs no masks: .* are ([\d.]+) of', log)[1]
    if scope != 'mmseg':  # Its ranks are those of a classifier's strides.
        assert float(ratio) == pytest.approx(1, abs=0.02)  # Of rank 1 to 10.
    # Neither hook nor wrapper is needed.
    config = make_config(
        scope,
        "custom_hooks = []\noptim_wrapper['type'] = 'OptimWrapper'\n",
        family='wide_factorized',
    )
    other = train(config, tmp_path / 'plain')
    assert_same(checkpoint['state_dict'], other['state_dict'])


@pytest.mark.parametrize('family', families())
def test_members_resume_evaluate_and_load_downstream(
    family, make_config, tmp_path
):
    # The ordinary stem, which a detector has too.
    config = make_config(
        'mmpretrain',
        "model['backbone']['type'] = 'SparseIFTResNet'\n",
        family,
    )
    whole = train(config, tmp_path / 'whole')
    first = str(tmp_path / 'whole/epoch_1.pth')
    resumed = train(config, tmp_path / 'resumed', '--resume', first)
    assert_same(whole['state_dict'], resumed['state_dict'])
    if family != 'wide_factorized':
        masks, others = (
            r['sparse_training']['masks'] for r in (whole, resumed)
        )
        assert_same(masks, others)
    last = (tmp_path / 'whole/last_checkpoint').read_text()
    metrics = test_tool.main(
        [config, last, '--work-dir', str(tmp_path / 'test')]
    )
    assert 'accuracy/top1' in metrics
    assert metrics['flops'] == pytest.approx(
        metrics['flops_of_dense'], rel=0.02
    )
    if family == 'wide_factorized':
        assert metrics['density'] == 1
    else:
        held = sum(int((~mask).sum()) for mask in masks.values())
        assert metrics['active_parameters'] == metrics['parameters'] - held
        size = sum(mask.numel() for mask in masks.values())
        assert metrics['density'] == pytest.approx(1 - held / size)

    # The backbone of a classifier is that of a detector and a segmentor.
    kwargs = dict(
        type='SparseIFTResNet',
        depth=18,
        base_channels=8,
        stem_channels=8,
        family=family,
        sparsity=0.75,
        init_cfg=dict(type='Pretrained', prefix='backbone.', checkpoint=last),
    )
    dilated = dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))
    for library, more in [(DET, {}), (SEG, dilated)]:
        backbone = library.build(dict(kwargs, **more))
        backbone.init_weights()
        assert_same(dict(backbone.state_dict()), backbone_state(whole))


def test_any_network_that_a_function_transforms(
    make_config, tmp_path, monkeypatch
):
    # As docs/family.md has it.
    (tmp_path / 'my_networks.py').write_text("""
from mmpretrain.models import VisionTransformer
from mmpretrain.registry import MODELS

import sift_mm


@MODELS.register_module(force=True)
def SparseViT(sparsity, **kwargs):
    model = VisionTransformer(**kwargs)
    model.init_weights()
    sift_mm.transform(model, family='wide', sparsity=sparsity)
    return model
""")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'my_networks', raising=False)
    more = """
custom_imports['imports'] += ['my_networks']
model.update(
    backbone=dict(
        _delete_=True, type='SparseViT', sparsity=.75, img_size=32,
        patch_size=8,
        arch=dict(embed_dims=16, num_layers=2, num_heads=2,
                  feedforward_channels=32)),
    neck=None,
    head=dict(_delete_=True, type='VisionTransformerClsHead', num_classes=10,
              in_channels=16))
"""
    config = make_config('mmpretrain', more)
    # MMEngine draws no weight anew.
    model = CLS.build(load_config(train_tool.parse_args([config])).model)
    weight = model.backbone.layers[0].ffn.layers[0][0].weight
    before = weight.clone()
    model.init_weights()
    assert torch.equal(weight, before)

    checkpoint = train(config, tmp_path / 'run')
    masks = checkpoint['sparse_training']['masks']
    assert len(masks) == 4  # Two layers in each of two feed-forward parts.
    for name, mask in masks.items():
        assert set(mask.shape) == {16, 4 * 32}  # 1 / (1 - s) times as wide.
        assert mask.sum() == mask.numel() / 4
        assert not checkpoint['state_dict'][name][~mask].any()
    last = str(tmp_path / 'run/epoch_3.pth')
    metrics = test_tool.main([config, last, '--work-dir', str(tmp_path / 't')])
    assert metrics['density'] == 0.25
