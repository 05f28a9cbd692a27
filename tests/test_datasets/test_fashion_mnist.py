"""Fashion-MNIST: from where it may be, to files of the right content."""

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest
from datafiles import cut, idx, md5, names, snapshot
from torchvision.datasets import FashionMNIST
from torchvision.datasets.mnist import read_image_file

from sift_mm.datasets import fashion_mnist

FILES = sorted(fashion_mnist.MD5)


def zeros(*shape):
    return idx(np.zeros(shape, np.uint8))


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """A folder with the compressed files; nothing else can be had."""
    root = tmp_path / 'fashion'
    root.mkdir()
    contents = {
        'train-images-idx3-ubyte': zeros(6, 28, 28),
        'train-labels-idx1-ubyte': zeros(6),
        't10k-images-idx3-ubyte': zeros(2, 28, 28),
        't10k-labels-idx1-ubyte': zeros(2),
    }
    assert sorted(contents) == FILES
    for name, content in contents.items():
        (root / f'{name}.gz').write_bytes(gzip.compress(content))
    digests = {name: md5(content) for name, content in contents.items()}
    monkeypatch.setattr(fashion_mnist, 'MD5', digests)
    monkeypatch.setattr(fashion_mnist, 'INSTALLED', Path('/nowhere'))
    monkeypatch.setattr(FashionMNIST, 'mirrors', ['http://127.0.0.1:1/'])
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    monkeypatch.setenv('PATH', '')
    return root


def unpacked(root):
    return [name for name in names(root) if not name.endswith('.gz')]


def test_it_is_unpacked_once(packed, prepare):
    said = prepare('fashion_mnist', packed)
    assert said.endswith('is complete: 60,000 + 10,000 images\n')
    assert unpacked(packed) == FILES
    path = packed / 'train-images-idx3-ubyte'
    assert read_image_file(str(path)).shape == (6, 28, 28)
    before = snapshot(packed)
    prepare('fashion_mnist', packed)
    assert snapshot(packed) == before


@pytest.mark.parametrize(
    'damage, sentence',
    [
        (lambda path: cut(path, 1), 'is broken ('),
        (lambda path: cut(path, 12), 'is broken ('),
        (
            # of digits, say
            lambda path: path.write_bytes(gzip.compress(zeros(3))),
            'is broken or not of Fashion-MNIST',
        ),
    ],
)
def test_a_wrong_archive_is_one_sentence(packed, refuse, damage, sentence):
    path = packed / 't10k-labels-idx1-ubyte.gz'
    damage(path)
    said = refuse('fashion_mnist', packed)
    assert f'{path} {sentence}' in said and said.count('\n') == 1
    assert unpacked(packed) == [n for n in FILES if n != path.stem]


def test_a_file_cut_short_is_refused(packed, prepare, refuse):
    prepare('fashion_mnist', packed)
    path = packed / 't10k-images-idx3-ubyte'
    cut(path, 1)
    assert f'{path} is broken' in refuse('fashion_mnist', packed)
    path.unlink()
    prepare('fashion_mnist', packed)


def test_it_is_taken_from_an_installed_package(
    packed, tmp_path, monkeypatch, prepare
):
    monkeypatch.setattr(fashion_mnist, 'INSTALLED', packed)
    root = tmp_path / 'data' / 'fashion_mnist'
    prepare('fashion_mnist', root)
    assert names(root) == FILES


def test_it_is_downloaded(packed, server, tmp_path, monkeypatch, prepare):
    folder, address = server
    for path in packed.iterdir():
        shutil.move(path, folder)
    monkeypatch.setattr(FashionMNIST, 'mirrors', [f'{address}/'])
    root = tmp_path / 'data' / 'fashion_mnist'
    prepare('fashion_mnist', root)
    assert names(root) == FILES


def test_it_is_taken_from_a_debian_package(
    packed, tmp_path, monkeypatch, prepare
):
    """The two programs are stand-ins: one writes a package, one opens it."""
    programs = tmp_path / 'bin'
    programs.mkdir()
    for name, lines in {
        'apt-get': f'test "$5" = {fashion_mnist.PACKAGE}; echo > small.deb',
        'dpkg-deb': f'test -f "$2"; mkdir -p "$3/nowhere"; '
        f'cp {packed}/*.gz "$3/nowhere"',
    }.items():
        (programs / name).write_text(
            f'#!/bin/sh -e\nPATH=/usr/bin:/bin\n{lines}\n'
        )
        (programs / name).chmod(0o755)
    monkeypatch.setenv('PATH', str(programs))
    root = tmp_path / 'data' / 'fashion_mnist'
    prepare('fashion_mnist', root)
    assert names(root) == FILES


def test_it_says_what_to_get(packed, refuse):
    (packed / 't10k-labels-idx1-ubyte.gz').unlink()
    assert (
        'get t10k-labels-idx1-ubyte.gz from '
        f'https://github.com/zalandoresearch/fashion-mnist, put them into '
        f'{packed}'
    ) in refuse('fashion_mnist', packed)
    assert len(unpacked(packed)) == 3
