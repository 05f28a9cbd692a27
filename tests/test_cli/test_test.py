"""Tests of tools/test.py on the runs of the three libraries."""

import copy
import json
import pickle
import re

import pytest
import torch
from mmengine.config import Config
from PIL import Image
from torch import nn

from helpers.runs import forget_instances
from helpers.sparse_runs import sparse_config
from sift_mm.cli import publish_model, train
from sift_mm.cli import test as tester
from sift_mm.engine.cost_hook import check_masks
from sift_mm.errors import UserError


def test_mmdet(runs, tmp_path):
    run = runs['mmdet']
    out = tmp_path / 'new' / 'pred.pkl'
    args = [run.config, run.checkpoint, '--work-dir', str(tmp_path)]
    metrics = tester.main([*args, '--out', str(out), '--show-dir', 'drawn'])
    assert 'coco/bbox_mAP_50' in metrics
    predictions = pickle.loads(out.read_bytes())
    assert [p['img_id'] for p in predictions] == [1, 2]
    assert 'gt_instances' not in predictions[0]
    drawn = sorted(path.name for path in tmp_path.glob('*/drawn/*'))
    assert drawn == ['000000000001.jpg', '000000000002.jpg']


def test_mmseg(runs, tmp_path):
    run = runs['mmseg']
    args = [run.config, run.checkpoint, '--work-dir', str(tmp_path)]
    metrics = tester.main([*args, '--out', 'maps', '--show-dir', 'drawn'])
    assert 'mIoU' in metrics
    maps = sorted((tmp_path / 'maps').iterdir())
    assert len(maps) == 2
    assert Image.open(maps[0]).size == (128, 64)
    assert len(list((tmp_path / 'drawn').rglob('*.png'))) == 2


def test_mmpretrain(runs, tmp_path):
    run = runs['mmpretrain']
    args = [run.config, run.checkpoint, '--work-dir', str(tmp_path)]
    drawing = 'default_hooks.visualization.interval=2'
    metrics = tester.main(
        [*args, '--out', 'pred.pkl', '--show-dir', 'drawn']
        + ['--cfg-options', drawing]
    )
    assert 'accuracy/top1' in metrics
    assert len(pickle.loads((tmp_path / 'pred.pkl').read_bytes())) == 6
    assert len(list((tmp_path / 'drawn').iterdir())) == 3


def test_json_has_metrics_and_costs(runs, tmp_path, capsys):
    run = runs['mmdet']
    metrics = tester.main(
        [run.config, run.checkpoint, '--work-dir', str(tmp_path)]
        + ['--out', 'metrics.json']
    )
    assert json.loads((tmp_path / 'metrics.json').read_text()) == metrics
    assert metrics['active_parameters'] == metrics['parameters'] > 0
    assert metrics['density'] == 1
    assert metrics['flops'] == metrics['flops_of_dense'] > 0
    printed = capsys.readouterr().out
    assert 'coco/bbox_mAP_50' in printed
    assert 'M active parameters' in printed


def options(scope, *argv):
    cfg = Config(dict(default_scope=scope, test_cfg=dict(), visualizer={}))
    return tester.merge_args(cfg, tester.parse_args(['c', 'ckpt', *argv]))


def test_resume_of_the_config_is_not_taken():
    assert options('mmdet').load_from == 'ckpt'
    assert options('mmdet').resume is False


def test_pictures_of_another_library():
    with pytest.raises(UserError, match='--show-dir works for mmdet, mmseg'):
        options('mmagic', '--show-dir', 'drawn')


def test_amp():
    assert options('mmpretrain', '--amp').test_cfg.fp16


def test_out_of_the_wrong_kind():
    with pytest.raises(UserError, match='has to be a .pkl file, not maps'):
        options('mmdet', '--out', 'maps')
    with pytest.raises(SystemExit):
        tester.parse_args(['c', 'ckpt', '--out-item', 'metrics'])


def test_missing_checkpoint(configs):
    with pytest.raises(SystemExit, match='no checkpoint .*none.pth'):
        tester.main([configs['mmdet'], 'none.pth'])


def test_missing_data(runs):
    run = runs['mmseg']
    option = 'test_dataloader.dataset.data_root=elsewhere'
    with pytest.raises(SystemExit, match='elsewhere.*gtFine.*make demo'):
        tester.main([run.config, run.checkpoint, '--cfg-options', option])


@pytest.fixture(scope='module')
def sparse(data, tmp_path_factory):
    """Train a sparse classifier; return its config and checkpoint."""
    folder = tmp_path_factory.mktemp('sparse')
    config = sparse_config(folder / 'c', 'mmpretrain', data['mmpretrain'])
    forget_instances()
    train.main([config, '--work-dir', str(folder)])
    path = (folder / 'last_checkpoint').read_text()
    return config, torch.load(path, weights_only=False)


@pytest.mark.parametrize('what', ['weights outside', 'no masks'])
def test_what_a_checkpoint_lacks_is_said(what, sparse, tmp_path):
    config, whole = sparse
    checkpoint = copy.deepcopy(whole)
    masks = checkpoint['sparse_training']['masks']
    name = 'backbone.layer1.0.conv1.weight'
    if what == 'no masks':
        del checkpoint['sparse_training']
        density, words = 1, 'the checkpoint has no masks'
    else:
        checkpoint['state_dict'][name][~masks[name]] = 1
        size = sum(mask.numel() for mask in masks.values())
        density = sum(int(mask.sum()) for mask in masks.values()) / size
        words = f'are not zero, so that the density is higher: {name}'
    path = tmp_path / 'tampered.pth'
    torch.save(checkpoint, path)
    metrics = tester.main([config, str(path), '--work-dir', str(tmp_path)])
    assert metrics['density'] == density
    assert 'accuracy/top1' in metrics
    said = next(tmp_path.glob('*/*.log')).read_text()
    assert re.search(f'WARNING.*{words}', said)


def test_masks_of_another_network_are_said():
    masks = dict(weight=torch.ones(3, 2, dtype=torch.bool))
    said = 'another network than this: weight; give --family and --sparsity'
    with pytest.raises(UserError, match=said):
        check_masks(nn.Linear(2, 2), masks)


def test_a_compact_file_has_the_same_metrics(sparse, tmp_path):
    config, whole = sparse
    run = tmp_path / 'run.pth'
    torch.save(whole, run)
    publish_model.main([str(run), str(tmp_path / 'small.pth'), '--compact'])
    (small,) = tmp_path.glob('small-*.pth')
    found = []
    for path in (run, small):
        forget_instances()
        found.append(tester.main([config, str(path), '--work-dir', 'w']))
    assert found[0] == found[1]


def test_sparse_and_mixed_precision_exclude_each_other(capsys):
    with pytest.raises(SystemExit):
        tester.main(['config.py', 'checkpoint.pth', '--sparse', '--amp'])
    assert '--sparse runs in float32' in capsys.readouterr().err
