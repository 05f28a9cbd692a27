"""Tests of what a config says about size and number of its images."""

import pytest
from mmengine.config import Config

from sift_mm.config.images import (
    epoch_images,
    find_sizes,
    image_size,
    schedule_samples,
)

COCO = dict(type='CocoDataset', ann_file='instances_train2017.json')
IMAGENET = dict(type='ImageNet', split='train')
STREETS = dict(
    type='CityscapesDataset', data_prefix=dict(img_path='leftImg8bit/train')
)
VOC = dict(type='VOCDataset')
RELATIVE = dict(crop_type='relative', crop_size=(0.3, 0.3))


def config(pipeline, divisor=None, **leaf):
    preprocessor = {} if divisor is None else dict(pad_size_divisor=divisor)
    return Config(
        dict(
            model=dict(data_preprocessor=preprocessor),
            test_dataloader=dict(dataset=dict(leaf, pipeline=pipeline)),
        )
    )


@pytest.mark.parametrize(
    'step, size',
    [
        (dict(type='Resize', scale=(1333, 800), keep_ratio=True), (800, 1333)),
        (dict(type='Resize', scale=(800, 1333), keep_ratio=True), (800, 1333)),
        (dict(type='Resize', scale=(640, 480)), (480, 640)),
        (dict(type='mmpretrain.Resize', scale=96), (96, 96)),
        # Crops say height first, but for mmcv's in the centre.
        (dict(type='RandomCrop', crop_size=(512, 1024)), (512, 1024)),
        (dict(type='RandomResizedCrop', scale=224), (224, 224)),
        (dict(type='CenterCrop', crop_size=(320, 240)), (240, 320)),
        (dict(type='Pad', size=(640, 480)), (480, 640)),
        # These leave images of several sizes.
        (dict(type='ResizeEdge', scale=256), None),
        (dict(type='Resize', scale_factor=0.5), None),
        (dict(type='RandomChoiceResize', scales=[(4, 4), (8, 8)]), None),
        (dict(RELATIVE, type='RandomCrop'), None),
        (dict(type='RandomFlip', prob=0.5), None),
    ],
)
def test_size_after_one_step(step, size):
    found = image_size(config([step], type='CustomDataset'), 'test')
    assert (found and found[0]) == size


def test_the_last_step_decides():
    resize = dict(type='Resize', scale=(64, 64))
    edge = dict(type='ResizeEdge', scale=256)
    crop = dict(type='CenterCrop', crop_size=224)
    pad = dict(type='Pad', size_divisor=32)
    assert image_size(config([edge, crop, pad]), 'test') == (
        (224, 224),
        'test pipeline, CenterCrop 224',
    )
    assert image_size(config([resize, edge]), 'test') is None


def test_padding_is_told():
    step = dict(type='Resize', scale=(1333, 800), keep_ratio=True)
    assert image_size(config([step], 32), 'test') == (
        (800, 1344),
        'test pipeline, Resize (1333, 800), padded to multiples of 32',
    )


def test_sets_of_one_size():
    found = image_size(config([], type='mmpretrain.CIFAR100'), 'test')
    assert found == ((32, 32), 'CIFAR100 images')
    assert image_size(config([], type='CustomDataset'), 'test') is None


def test_one_phase_stands_in_for_the_other():
    cfg = config([dict(type='CenterCrop', crop_size=24)])
    found = ((24, 24), 'test pipeline, CenterCrop 24')
    assert find_sizes(cfg, None) == (found, found)
    given = ((8, 16), 'as given')
    assert find_sizes(cfg, [8, 16]) == (given, given)
    with pytest.raises(ValueError, match='give it by --shape H W'):
        find_sizes(config([]), None)


@pytest.mark.parametrize(
    'dataset, images',
    [
        (COCO, 118_287),
        (dict(COCO, filter_cfg=dict(filter_empty_gt=True)), 117_266),
        (dict(COCO, ann_file='train.json'), None),
        (dict(COCO, indices=100), None),
        (dict(COCO, metainfo=dict(classes=('cat',))), None),
        (IMAGENET, 1_281_167),
        (dict(IMAGENET, split='val'), None),
        (dict(type='CIFAR10', split='train'), 50_000),
        (STREETS, 2_975),
        # MMDetection's leaves images without instances out.
        (dict(STREETS, filter_cfg=dict(filter_empty_gt=True)), None),
        (dict(type='RepeatDataset', times=3, dataset=COCO), 3 * 118_287),
        (dict(type='MultiImageMixDataset', dataset=COCO), 118_287),
        (dict(type='ConcatDataset', datasets=[COCO, COCO]), 2 * 118_287),
        (dict(type='ConcatDataset', datasets=[COCO, VOC]), None),
        # It repeats by what the annotations say.
        (dict(type='ClassBalancedDataset', dataset=COCO), None),
    ],
)
def test_images_of_an_epoch(dataset, images):
    assert epoch_images(dataset) == images


def samples(train_cfg, **more):
    loader = dict(batch_size=2, dataset=COCO)
    return Config(dict(train_cfg=train_cfg, train_dataloader=loader) | more)


def test_samples_by_epochs():
    cfg = samples(dict(by_epoch=True, max_epochs=12))
    assert schedule_samples(cfg) == (
        12 * 118_287,
        '12 epochs of 118,287, CocoDataset as published',
    )
    # The batch does not matter.
    assert schedule_samples(cfg, 100, 8) == (
        1200,
        '12 epochs of 100, as given',
    )


def test_samples_by_iterations():
    cfg = samples(dict(type='IterBasedTrainLoop', max_iters=3000))
    found, origin = schedule_samples(cfg)
    assert (found, origin[:20]) == (6000, '3,000 batches of 2, ')
    assert 'one process' in origin
    assert schedule_samples(cfg, None, 16)[0] == 48_000
    scaled = samples(cfg.train_cfg, auto_scale_lr=dict(base_batch_size=8))
    assert schedule_samples(scaled) == (
        24_000,
        '3,000 batches of 8, auto_scale_lr',
    )


@pytest.mark.parametrize(
    'cfg, message',
    [
        (Config(), 'no training data'),
        (samples({}), 'neither max_epochs nor max_iters'),
        (
            samples(dict(max_epochs=2), train_dataloader=dict(dataset=VOC)),
            'how many images an epoch of this VOCDataset has; '
            '--epoch-samples N says it',
        ),
    ],
)
def test_what_is_missing_is_said(cfg, message):
    found, text = schedule_samples(cfg)
    assert found is None
    assert message in text
