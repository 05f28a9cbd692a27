"""Every member of the family in runs of the three libraries."""

import re

import pytest
from mmdet.registry import MODELS as DET
from mmseg.registry import MODELS as SEG

from helpers.sparse_runs import assert_masked, probed, train
from helpers.toy_runs import assert_same
from sift_mm.cli import test as test_tool


def backbone_state(checkpoint):
    return {
        k.removeprefix('backbone.'): v
        for k, v in checkpoint['state_dict'].items()
        if k.startswith('backbone.')
    }


@pytest.mark.parametrize(
    'scope, family, algorithm',
    [
        ('mmdet', 'parallel', 'RigL'),
        ('mmseg', 'factorized', 'SET'),
        ('mmdet', 'doped', 'Static'),
    ],
)
def test_members_train_with_every_algorithm(
    scope, family, algorithm, make_config, tmp_path
):
    config = make_config(
        scope,
        f"custom_hooks[0]['algorithm'] = '{algorithm}'\n",
        family,
    )
    checkpoint = train(config, tmp_path / 'run')
    records = probed(tmp_path / 'run')
    assert_masked(checkpoint, records)
    moved = len({r['digest'] for r in records})
    assert moved == (1 if algorithm == 'Static' else len(records))


def test_wide_factorized_trains_without_masks(make_config, tmp_path):
    epochs = "train_cfg['max_epochs'] = 1\n"
    config = make_config('mmpretrain', epochs, 'wide_factorized')
    checkpoint = train(config, tmp_path / 'run')
    assert 'sparse_training' not in checkpoint
    log = next((tmp_path / 'run').glob('*/*.log')).read_text()
    ratio = re.search(r'needs no masks: .* are ([\d.]+) of', log)[1]
    assert float(ratio) == pytest.approx(1, abs=0.02)  # ranks are 1 to 10
    # Neither hook nor wrapper is needed.
    config = make_config(
        'mmpretrain',
        epochs + "custom_hooks = []\noptim_wrapper['type'] = 'OptimWrapper'\n",
        'wide_factorized',
    )
    other = train(config, tmp_path / 'plain')
    assert_same(checkpoint['state_dict'], other['state_dict'])


@pytest.mark.parametrize('family', ['doped', 'wide_factorized'])
def test_members_resume_evaluate_and_load_downstream(
    family, make_config, tmp_path
):
    # The ordinary stem, which a detector has too.
    config = make_config(
        'mmpretrain',
        "model['backbone']['type'] = 'SparseIFTResNet'\n"
        "train_cfg['max_epochs'] = 2\n",
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
