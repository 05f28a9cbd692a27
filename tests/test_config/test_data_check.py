"""Tests of the sentence about missing data."""

from pathlib import Path

import pytest
from mmengine.config import Config

from sift_mm.config.data import check_data, leaf_datasets
from sift_mm.data import DATA_SETS
from sift_mm.errors import UserError

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
    with pytest.raises(UserError) as stop:
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
    coco = loaders(train=dict(COCO, data_root=str(data['mmdet'])))
    check_data(coco, ['train'])
    assert message(coco, 'train', 'val') == 'The config has no val_dataloader.'
    root = str(data['mmpretrain'])
    imagenet = dict(type='ImageNet', data_root=root, split='val')
    check_data(loaders(test=imagenet), ['test'])


def test_coco_sentence(tmp_path):
    train, val = (
        dict(
            type='CocoDataset',
            data_root=str(tmp_path / 'coco'),
            ann_file=f'annotations/instances_{split}2017.json',
            data_prefix=dict(img=f'{split}2017/'),
        )
        for split in ('train', 'val')
    )
    cfg = loaders(train=train, val=val)
    assert message(cfg, 'train', 'val') == (
        f'The data is missing: looked in {tmp_path}/coco, which should hold '
        'annotations/instances_train2017.json and the images of train2017, '
        'annotations/instances_val2017.json and the images of val2017; '
        f'for COCO, {DATA_SETS["coco"].remedy}; '
        '`make demo` fetches small data of its own.'
    )
    assert 'instances_val2017' not in message(cfg, 'train')


def test_empty_folder_is_missing(tmp_path):
    (tmp_path / 'train').mkdir()
    cfg = loaders(
        train=dict(type='ImageNet', data_root=str(tmp_path), split='train')
    )
    assert 'the images of train;' in message(cfg, 'train')
    (tmp_path / 'train' / 'n01440764').mkdir()
    check_data(cfg, ['train'])


STREETS = dict(img_path='leftImg8bit/train', seg_map_path='gtFine/train')


@pytest.mark.parametrize(
    'dataset, words',
    [
        (
            dict(type='CityscapesDataset', data_prefix=STREETS),
            'should hold leftImg8bit/ and gtFine/ of Cityscapes (the latter',
        ),
        # A root is shown in full.
        (dict(COCO, data_root='data/coco/'), 'looked in {cwd}/data/coco,'),
        # It may not be fetched.
        (
            dict(type='CIFAR100', data_root='x', download=False),
            'the CIFAR100 data',
        ),
        # What is not local passes.
        (dict(COCO, data_root='s3://bucket/coco/'), None),
        (dict(COCO, data_root='x', backend_args=dict(backend='a')), None),
        (dict(type='CIFAR100', data_root='x', split='train'), None),
        (dict(type='ToyDataset', num_samples=3), None),
    ],
)
def test_what_is_missing_is_said(dataset, words):
    cfg = loaders(train=dataset)
    if words is None:
        check_data(cfg, ['train'])
    else:
        assert words.format(cwd=Path.cwd()) in message(cfg, 'train')
