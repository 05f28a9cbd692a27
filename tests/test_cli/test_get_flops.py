"""Tests of tools/analysis/get_flops.py, on configs whose data is nowhere."""

import json
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from helpers.runs import ROOT
from helpers.sparse_runs import sparse_config
from sift_mm.cli import get_flops
from sift_mm.cli.reports.text import flops
from sift_mm.flops import count_flops
from sift_mm.sparsity import ALGORITHMS

NOWHERE = Path('nowhere')


@pytest.mark.parametrize(
    'scope, shape, parts',
    [
        ('mmdet', (128, 128), ['backbone', 'neck', 'bbox_head']),
        ('mmseg', (64, 64), ['backbone', 'decode_head', 'auxiliary_head']),
        ('mmpretrain', (32, 32), ['backbone', 'neck', 'head']),
    ],
)
def test_the_libraries(scope, shape, parts, tmp_path, report, dense):
    if scope == 'mmseg':
        path = sparse_config(tmp_path / 'dense', scope, NOWHERE, DENSE_SEG)
    else:
        path = dense(scope)
    found = report(sparse_config(tmp_path / 'sparse', scope, NOWHERE))
    assert tuple(found['shape']) == shape
    # Rows add up.
    for key in ('flops_dense', 'flops_sparse', 'parameters', 'active'):
        rows = sum(row[key] for row in found['layers'])
        assert rows == pytest.approx(found['total'][key], rel=1e-12)
    # The dense network is that of a config written by hand.
    cfg = Config.fromfile(path)
    init_default_scope(scope)
    count = count_flops(MODELS.build(cfg.model), shape, mode='tensor')
    other = found['comparison']
    assert [part['name'] for part in other['parts']] == parts
    assert other['total']['flops_of_dense'] == count.total
    assert other['total']['flops'] == found['total']['flops_sparse']
    assert sum(part['flops'] for part in other['parts']) == pytest.approx(
        other['total']['flops'], rel=1e-12
    )
    by_name = {part['name']: part for part in other['parts']}
    assert by_name['backbone']['flops_of_dense'] == count.by_module['backbone']
    # The backbone is matched, as far as whole weights allow.
    assert other['backbone_ratio'] == pytest.approx(1, abs=2e-3)
    added = sum(
        part['flops'] - part['flops_of_dense'] for part in other['parts'][1:]
    )
    assert other['added_share'] == pytest.approx(added / count.total)
    assert added > 0


DENSE_SEG = """
model['backbone'].update(family=None, sparsity=None)
model['decode_head'].update(in_channels=64, c1_in_channels=8)
model['auxiliary_head'].update(in_channels=32)
"""


def test_what_a_wider_neck_costs(tmp_path, report):
    found = report(sparse_config(tmp_path, 'mmdet', NOWHERE))
    neck = found['comparison']['parts'][1]
    # Of the FPN, from stage 2 on: lateral convolutions of 16 outputs read
    # twice 16, 32 and 64 channels at 16, 8 and 4 pixels a side; the extra
    # level reads the last feature map and has 16 outputs at 2 x 2.
    extra = sum(
        2 * 16 * channels * side**2
        for channels, side in [(16, 16), (32, 8), (64, 4)]
    )
    assert neck['flops'] - neck['flops_of_dense'] == (
        extra + 2 * 9 * 16 * 64 * 2**2
    )


def test_training_by_hand(tmp_path, report):
    more = "custom_hooks[0].update(interval=9, end=0.5, algorithm='SET')"
    config = sparse_config(tmp_path, 'mmpretrain', NOWHERE, more)
    found = report(config, '--epoch-samples', '1000', '--batch-size', '10')
    sparse = found['total']['flops_sparse']
    full = found['total']['flops_dense']
    dense = found['comparison']['total']['flops_of_dense']
    assert found['masks']['algorithm'] == 'SET'
    methods = found['training']['flops_per_sample']
    assert methods['dense'] == 3 * dense
    assert methods['Static'] == methods['SET'] == 3 * sparse
    # Ten steps of sparse passes, one of their backward passes for weights
    # dense; for half of the training.
    updating = (9 * 3 * sparse + 2 * sparse + full) / 10
    assert methods['RigL'] == pytest.approx((updating + 3 * sparse) / 2)
    # Three epochs of a thousand; GMP's density falls by a cubic until step
    # 144 of 300, and stays for nine steps each. Counts are rounded.
    left = [max(0, 1 - step // 9 * 9 / 144) ** 3 for step in range(300)]
    mean = sparse + (full - sparse) * sum(left) / 300
    assert methods['GMP'] == pytest.approx(3 * mean, rel=1e-4)
    assert found['training']['samples'] == 3000
    assert methods.pop('CHT') is found['training']['flops'].pop('CHT') is None
    assert found['training']['flops'] == pytest.approx(
        {name: 3000 * flops for name, flops in methods.items()}
    )


def test_a_density_that_falls_is_told(tmp_path, report, monkeypatch):
    class Needy(ALGORITHMS.base):
        def __init__(self, depth: int) -> None:
            super().__init__()

    monkeypatch.setattr(ALGORITHMS, '_classes', dict(ALGORITHMS._classes))
    ALGORITHMS.register(Needy)
    more = """
custom_hooks[0].update(
    interval=10, end=1.0, algorithm=dict(type='GraNet', initial=0.5))
"""
    config = sparse_config(tmp_path, 'mmpretrain', NOWHERE, more)
    found = report(config, '--epoch-samples', '100', '--batch-size', '10')
    # The third update, at step 30, gives the final density.
    masks, last = found['masks'], 1 - found['masks']['sparsity']
    mean = last + (0.5 - last) * (1 + (2 / 3) ** 3 + (1 / 3) ** 3) / 3
    assert masks['course'] == pytest.approx(
        dict(start=0.5, mean=mean), abs=1e-4
    )
    methods = found['training']['flops_per_sample']
    assert methods['Needy'] is None and methods['RigL'] < methods['GraNet']


def test_training_images_may_be_smaller(report, dense):
    config = dense(
        'mmseg',
        'test_pipeline[1] = dict('
        "type='Resize', scale=(256, 128), keep_ratio=True)\n",
    )
    found = report(config)
    assert found['shape'] == [128, 256]
    assert found['training']['shape'] == [64, 64]
    methods = found['training']['flops_per_sample']
    assert list(methods) == ['dense']
    # An eighth of the pixels, and the auxiliary head.
    head = 2 * (9 * 32 * 8 + 8 * 19) * 8**2
    assert methods['dense'] == 3 * (found['total']['flops_dense'] / 8 + head)
    given = report(config, '--shape', '32', '64')
    assert given['shape'] == given['training']['shape'] == [32, 64]


@pytest.mark.parametrize('family', ['wide', 'doped', 'wide_factorized'])
def test_every_family(family, tmp_path, report):
    width = 256 if 'wide' in family else 128
    more = f"""
model['backbone'].update(
    family={family!r}, base_channels=16, stem_channels=16)
model['head']['in_channels'] = {width}
"""
    found = report(sparse_config(tmp_path, 'mmpretrain', NOWHERE, more))
    backbone = dict(type='ResNet_CIFAR', depth=18)
    narrow = MODELS.build(backbone | dict(base_channels=16, stem_channels=16))
    part = found['comparison']['parts'][0]
    assert part['flops_of_dense'] == count_flops(narrow, (32, 32)).total
    # Ranks are whole numbers, and not many at this width.
    assert found['comparison']['backbone_ratio'] == pytest.approx(1, abs=0.01)
    assert (found['comparison']['added_share'] > 0) == ('wide' in family)
    methods = found['training']['flops_per_sample']
    if family == 'wide_factorized':
        assert found['masks'] is None
        assert list(methods) == ['dense', 'unmasked']
        assert methods['unmasked'] == 3 * found['total']['flops_dense']
    else:
        assert list(methods) == ['dense', *ALGORITHMS.names]
        assert methods['CHT'] is None  # It trains linear layers alone.
        assert methods['Static'] < methods['RigL']
        assert found['total']['active'] < found['total']['parameters']


def test_nothing_but_json_is_printed(report, dense):
    config = dense('mmpretrain', "print('as some libraries do')\n")
    assert report(config)['config'] == config


def test_masks_that_the_run_drops_do_not_count(tmp_path, report):
    text = (
        "model['backbone']['init_cfg'] = dict("
        "type='Pretrained', checkpoint='a.pth')\n"
        "custom_hooks[0]['transfer'] = {!r}\n"
    )
    fixed, dropped = (
        report(
            sparse_config(tmp_path, 'mmseg', NOWHERE, text.format(transfer))
        )
        for transfer in ('fixed', 'dense')
    )
    assert fixed['masks']['transferred'] == 'fixed'
    assert dropped['masks'] is None
    total = dropped['total']
    assert total['flops_sparse'] == total['flops_dense']
    assert total['active'] == total['parameters']
    assert fixed['total']['flops_dense'] == total['flops_dense']


def test_masks_without_a_sparse_backbone(report, dense):
    config = dense(
        'mmpretrain',
        "custom_imports = dict(imports=['sift_mm'])\n"
        "custom_hooks = [dict(type='SparseTrainingHook', sparsity=0.5, "
        "include=['backbone.conv1.weight'])]\n",
    )
    found = report(config)
    # A stem of 3 x 3 x 3 x 8 weights at 32 x 32 positions, half of it.
    saved = 2 * 27 * 8 * 32 * 32 / 2
    total = found['total']
    assert total['flops_sparse'] == total['flops_dense'] - saved
    assert total['active'] == total['parameters'] - 27 * 4
    whole = found['comparison']['total']
    assert whole['flops_of_dense'] == total['flops_dense']
    assert found['sparse_backbone'] is False


def test_synchronised_norms_do_not_matter(report, dense):
    plain = report(dense('mmpretrain'))
    assert plain['layers'][1]['type'] == 'BatchNorm2d'
    # This one wants a process group to be built.
    sync = "model['backbone']['norm_cfg'] = dict(type='MMSyncBN')\n"
    assert report(dense('mmpretrain', sync))['layers'] == plain['layers']


def test_a_retinanet_as_it_is_published(report):
    # MMDetection has 250 GMACs for the dense R-50; mmengine's counter,
    # which has norms too, 250.97.
    found = report('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    assert found['shape'] == [800, 1344]
    assert found['total']['flops_dense'] / 2e9 == pytest.approx(250.5, abs=0.1)
    assert found['total']['parameters'] == 37_968_692
    assert found['training']['samples'] == 12 * 117_266


def test_the_text(tmp_path, capsys):
    config = str(ROOT / 'configs/retinanet_sift_wide_r18.py')
    file = tmp_path / 'out' / 'numbers.json'
    get_flops.main([config, '--json', str(file)])
    text = capsys.readouterr().out
    found = json.loads(file.read_text())
    lines = text.splitlines()
    assert lines[0] == (
        f'{config} at 800 x 1344 (test pipeline, Resize (1333, 800), padded '
        'to multiples of 32)'
    )
    assert 'FLOPs are 2 x MACs' in text and found['counts'].endswith('10^18.')
    # FLOPs have the prefix of their size, all else is in the header's unit.
    row = next(line for line in lines if line.startswith('backbone.conv1 '))
    assert row.split() == [
        *('backbone.conv1', 'Conv2d', '10.115', 'G', '10.115', 'G', '0.019'),
        *('0.019', '0.075', '0.075', '137.626'),
    ]
    header = next(line for line in lines if line.startswith('layer '))
    assert len(header) == len(row)  # Aligned to the right.
    assert [line.split()[:2] for line in lines if line.startswith('sum')] == [
        ['sum', f'{found["total"]["flops_dense"] / 1e9:.3f}'],
        ['sum', f'{found["total"]["flops_sparse"] / 1e9:.3f}'],
    ]
    assert 'Masks: RigL on 19 parameters, sparsity 0.75 as written' in text
    assert "has 1.0000 of the dense one's FLOPs. Neck and heads" in text
    assert 'add 0.65% to the dense network.' in text
    assert '1,407,192, 12 epochs of 117,266, CocoDataset as pub' in text
    assert '-0.000' not in text


@pytest.mark.parametrize(
    'number, text',
    [
        *((0, '0'), (12.0, '12'), (999.9996, '1.000 k'), (1728, '1.728 k')),
        *((192_283, '192.283 k'), (1_728_000, '1.728 M'), (4.6e9, '4.600 G')),
        *((-2.5e12, '-2.500 T'), (1.67e18, '1.670 E'), (None, '-')),
    ],
)
def test_flops_have_the_prefix_of_their_size(number, text):
    assert flops(number) == text


def test_text_without_a_schedule(dense, capsys):
    get_flops.main([dense('mmpretrain')])
    text = capsys.readouterr().out
    assert 'No masks: all weights are dense.' in text
    assert 'no Sparse-IFT backbone: the dense network is this one' in text
    last = [line.split() for line in text.splitlines()[-3:]]
    assert last[0][0] == 'dense' and last[0][-1] == '-'
    assert '--epoch-samples N says it' in text
