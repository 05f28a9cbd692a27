"""Mini sets of everything that configs train on, where configs look."""

import json
import pickle
from unittest import mock

import numpy as np
import pytest

from helpers import datasets
from helpers.datasets import idx
from helpers.small_configs import shallow
from helpers.texts import mini_text


def mini_cifar100(root, train=4, test=2):
    """Write the pickles of CIFAR-100: planes of red, green and blue."""
    folder = root / 'cifar-100-python'
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, number in (('train', train), ('test', test)):
        content = {
            'data': rng.integers(0, 256, (number, 3072), np.uint8),
            'fine_labels': rng.integers(0, 100, number).tolist(),
            'coarse_labels': rng.integers(0, 20, number).tolist(),
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    names = [f'class_{label}' for label in range(100)]
    (folder / 'meta').write_bytes(pickle.dumps({'fine_label_names': names}))


def mini_fashion_mnist(root, train=4, test=2):
    """Write the four IDX files of Fashion-MNIST, unpacked."""
    root.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, number in (('train', train), ('t10k', test)):
        images = rng.integers(0, 256, (number, 28, 28), np.uint8)
        labels = rng.integers(0, 10, number, np.uint8)
        (root / f'{name}-images-idx3-ubyte').write_bytes(idx(images))
        (root / f'{name}-labels-idx1-ubyte').write_bytes(idx(labels))


def mini_tree_crowns(root):
    """Write tree crowns: one class, annotated as COCO."""
    datasets.mini_coco(root, num_train=4, num_val=2, size=(64, 64))
    for split in ('train', 'val'):
        (root / f'{split}2017').rename(root / split)
        path = root / f'annotations/instances_{split}2017.json'
        content = json.loads(path.read_text())
        content['categories'] = [dict(id=1, name='tree')]
        for annotation in content['annotations']:
            annotation['category_id'] = 1
        path.with_name(f'{split}.json').write_text(json.dumps(content))


@pytest.fixture(scope='session')
def checkout(tmp_path_factory):
    """Make a folder whose ``data`` holds every mini data set."""
    root = tmp_path_factory.mktemp('checkout')
    data = root / 'data'
    mini_cifar100(data / 'cifar100')
    mini_fashion_mnist(data / 'fashion_mnist')
    mini_tree_crowns(data / 'tree_crowns')
    mini_text(data / 'text')
    datasets.mini_imagenet(
        data / 'imagenet', num_train=2, num_val=1, num_classes=2
    )
    datasets.mini_coco(data / 'coco', num_train=4, num_val=2)
    datasets.mini_cityscapes(data / 'cityscapes')
    return root


@pytest.fixture
def in_checkout(checkout, monkeypatch, fresh_process):
    """Run in the folder of the mini sets, with shallow networks."""
    monkeypatch.chdir(checkout)
    # MMPreTrain knows the files of CIFAR by their MD5.
    known = mock.patch('mmpretrain.datasets.cifar.check_md5', lambda *_: True)
    with shallow(), known:
        yield
