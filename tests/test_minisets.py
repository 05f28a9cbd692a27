"""Tests that the mini sets are what they claim to be."""

import json
from pathlib import Path

import minisets
import numpy as np
from PIL import Image


def test_coco(tmp_path: Path) -> None:
    root = minisets.mini_coco(tmp_path, num_train=3, num_val=2, size=(64, 96))
    for split, number in (('train', 3), ('val', 2)):
        path = root / 'annotations' / f'instances_{split}2017.json'
        content = json.loads(path.read_text())
        assert len(content['images']) == number
        for image in content['images']:
            size = image['width'], image['height']
            file = root / f'{split}2017' / image['file_name']
            assert Image.open(file).size == size
            assert 64 <= min(size) <= max(size) <= 96
        assert {a['image_id'] for a in content['annotations']} == set(
            range(1, number + 1)
        )
        for annotation in content['annotations']:
            x, y, w, h = annotation['bbox']
            assert 0 < annotation['area'] <= w * h
            xs = annotation['segmentation'][0][::2]
            assert (min(xs), max(xs)) == (x, x + w)


def test_coco_ids() -> None:
    ids = minisets.COCO_IDS
    assert len(ids) == 80
    assert (ids['person'], ids['stop sign'], ids['toothbrush']) == (1, 13, 90)


def test_cityscapes(tmp_path: Path) -> None:
    root = minisets.mini_cityscapes(tmp_path, num_train=2, num_val=1)
    images = sorted(root.rglob('*_leftImg8bit.png'))
    labels = sorted(root.rglob('*_gtFine_labelTrainIds.png'))
    assert len(images) == len(labels) == 3
    label = np.asarray(Image.open(labels[0]))
    assert label.shape == (64, 128)
    assert set(np.unique(label)) == {0, 2, 10, 11, 13, 255}


def test_imagenet(tmp_path: Path) -> None:
    root = minisets.mini_imagenet(tmp_path, num_train=2, num_val=1)
    lines = (root / 'meta' / 'train.txt').read_text().splitlines()
    assert len(lines) == 6
    for line in lines:
        name, label = line.split()
        mean = np.asarray(Image.open(root / 'train' / name)).mean()
        assert round((mean - 40) / 60) == int(label)


def test_same_seed_same_pixels(tmp_path: Path) -> None:
    for make in (
        minisets.mini_coco,
        minisets.mini_cityscapes,
        minisets.mini_imagenet,
    ):
        roots = [make(tmp_path / make.__name__ / name) for name in 'ab']
        files = [sorted(root.rglob('*.*')) for root in roots]
        assert [f.name for f in files[0]] == [f.name for f in files[1]]
        for one, other in zip(*files, strict=True):
            assert one.read_bytes() == other.read_bytes()
