"""Tests of the sentence about missing data."""

from pathlib import Path

import pytest
from mmengine.config import Config

from sift_mm.config.data import check_data, leaf_datasets
from sift_mm.errors import Mistake

COCO = dict(
    type='CocoDataset',
    ann_file='annotations/instances_train2017.json',
    data_prefix=dict(img='train2017/'),
)


def loaders(**datasets):
    return Config(
        {f'{k}_dataloader': dict(dataset=v) for k, v in datasets.items()}
    )


def message(cfg, *phases):
    with pytest.raises(Mistake) as stop:
        check_data(cfg, phases)
    return str(stop.value)


def test_wrappers_are_opened():
    coco, voc = dict(type='CocoDataset'), dict(type='VOCDataset')
    cfg = dict(
        type='RepeatDataset',
        dataset=dict(
            type='ConcatDataset',
            datasets=[coco, dict(type='ClassBalancedDataset', dataset=voc)],
        ),
    )
    assert list(leaf_datasets(cfg)) == [coco, voc]


def test_complete_sets_pass(data):
    root = str(data['mmdet'])
    coco = loaders(train=dict(COCO, data_root=root))
    check_data(coco, ['train'])
    assert message(coco, 'train', 'val') == 'The config has no val_dataloader.'
    root = str(data['mmpretrain'])
    imagenet = dict(type='ImageNet', data_root=root, split='val')
    check_data(loaders(test=imagenet), ['test'])


def test_coco_sentence(tmp_path):
    val = dict(
        type='CocoDataset',
        data_root=str(tmp_path / 'coco'),
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017/'),
    )
    train = dict(COCO, data_root=str(tmp_path / 'coco'))
    cfg = loaders(train=train, val=val)
    assert message(cfg, 'train', 'val') == (
        f'The data is missing: looked in {tmp_path}/coco, which should hold '
        'annotations/instances_train2017.json and the images of train2017, '
        'annotations/instances_val2017.json and the images of val2017; '
        '`python tools/prepare_data.py coco` says how to get it, and '
        '`make demo` fetches small data of its own.'
    )
    assert 'val2017' not in message(cfg, 'train')


def test_cityscapes_sentence(tmp_path):
    cfg = loaders(
        train=dict(
            type='CityscapesDataset',
            data_root=str(tmp_path),
            data_prefix=dict(
                img_path='leftImg8bit/train', seg_map_path='gtFine/train'
            ),
        )
    )
    text = message(cfg, 'train')
    assert 'should hold leftImg8bit/ and gtFine/ of Cityscapes' in text
    assert text.count('Cityscapes') == 1


def test_empty_folder_is_missing(tmp_path):
    (tmp_path / 'train').mkdir()
    cfg = loaders(
        train=dict(type='ImageNet', data_root=str(tmp_path), split='train')
    )
    assert 'the images of train;' in message(cfg, 'train')
    (tmp_path / 'train' / 'n01440764').mkdir()
    check_data(cfg, ['train'])


def test_relative_root_is_shown_in_full():
    cfg = loaders(train=dict(COCO, data_root='data/coco/'))
    assert f'looked in {Path.cwd()}/data/coco,' in message(cfg, 'train')


@pytest.mark.parametrize(
    'dataset',
    [
        dict(COCO, data_root='s3://bucket/coco/'),
        dict(COCO, data_root='x', backend_args=dict(backend='petrel')),
        dict(type='CIFAR100', data_root='x', split='train'),
        dict(type='ToyDataset', num_samples=3),
    ],
)
def test_what_is_not_local_passes(dataset):
    check_data(loaders(train=dataset), ['train'])


def test_cifar_that_may_not_be_fetched():
    cfg = loaders(train=dict(type='CIFAR100', data_root='x', download=False))
    assert 'the CIFAR100 data' in message(cfg, 'train')
