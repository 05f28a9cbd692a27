"""CIFAR-100: the archive, at hand or downloaded, and the files' hashes."""

import pickle

import pytest
from datafiles import cut, md5, names, snapshot, tar_of
from torchvision.datasets import CIFAR100

ARCHIVE = CIFAR100.filename


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A small archive; its hashes are taken for the right ones."""
    contents = {name: pickle.dumps(name) for name in ('train', 'test', 'meta')}
    path = tmp_path / 'cifar' / ARCHIVE
    path.parent.mkdir()
    path.write_bytes(
        tar_of(
            {f'cifar-100-python/{n}': c for n, c in contents.items()}, 'w:gz'
        )
    )
    digests = {name: md5(content) for name, content in contents.items()}
    for split in ('train', 'test'):
        monkeypatch.setattr(
            CIFAR100, f'{split}_list', [[split, digests[split]]]
        )
    meta = dict(CIFAR100.meta, md5=digests['meta'])
    monkeypatch.setattr(CIFAR100, 'meta', meta)
    monkeypatch.setattr(CIFAR100, 'tgz_md5', md5(path.read_bytes()))
    return path


def test_it_is_unpacked_once(archive, prepare):
    root = archive.parent
    said = prepare('cifar100', root)
    assert said.endswith('is complete: 50,000 + 10,000 images\n')
    assert names(root / 'cifar-100-python') == ['meta', 'test', 'train']
    before = snapshot(root)
    prepare('cifar100', root)
    assert snapshot(root) == before


def test_what_is_cut_short_is_refused(archive, prepare, refuse):
    root, content = archive.parent, archive.read_bytes()
    cut(archive, 20)
    assert f'{archive} is broken or not of CIFAR-100' in refuse(
        'cifar100', root
    )
    assert names(root) == [ARCHIVE]

    archive.write_bytes(content)
    prepare('cifar100', root)
    path = root / 'cifar-100-python' / 'train'
    cut(path, 1)
    said = refuse('cifar100', root)
    assert f'{path} is broken' in said and 'remove it' in said
    path.unlink()
    prepare('cifar100', root)


def test_it_is_downloaded(
    archive, server, tmp_path, monkeypatch, prepare, refuse
):
    folder, address = server
    monkeypatch.setattr(CIFAR100, 'url', f'{address}/{ARCHIVE}')
    root = tmp_path / 'data' / 'cifar100'
    for content in (None, archive.read_bytes()[20:]):
        if content is not None:
            (folder / ARCHIVE).write_bytes(content)
        said = refuse('cifar100', root)
        assert f'Get {ARCHIVE} (169 MB) from https://www.cs' in said
        assert names(root) == []
    (folder / ARCHIVE).write_bytes(archive.read_bytes())
    prepare('cifar100', root)
    assert names(root) == ['cifar-100-python']


def test_an_archive_keeps_to_its_folder(archive, monkeypatch, refuse):
    archive.write_bytes(tar_of({'../../evil': b''}, 'w:gz'))
    monkeypatch.setattr(CIFAR100, 'tgz_md5', md5(archive.read_bytes()))
    said = refuse('cifar100', archive.parent)
    assert 'is broken' in said and 'outside the destination' in said
    assert names(archive.parent) == [ARCHIVE]
    assert not (archive.parent.parent / 'evil').exists()
