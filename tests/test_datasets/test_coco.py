"""COCO: from its archives, found on disk or downloaded, to what is checked."""

import json
import shutil
import zipfile

import minisets
import pytest
from datafiles import cut, fail_after, names, snapshot, zip_of
from PIL import Image

from sift_mm.datasets import coco


@pytest.fixture
def small_coco(tmp_path, monkeypatch):
    monkeypatch.setattr(coco, 'IMAGES', {'train': 3, 'val': 2})
    return minisets.mini_coco(tmp_path / 'coco', num_train=3, num_val=2)


@pytest.fixture
def zipped_coco(small_coco, tmp_path):
    """The three archives, alone in a folder."""
    folder = tmp_path / 'zipped'
    folder.mkdir()
    for archive, item in (
        ('train2017.zip', 'train2017'),
        ('val2017.zip', 'val2017'),
        ('annotations_trainval2017.zip', 'annotations'),
    ):
        zip_of(folder / archive, small_coco, item)
    return folder


def test_archives_are_unpacked_once(zipped_coco, small_coco, prepare):
    folders = ['annotations', 'train2017', 'val2017']
    archives = names(zipped_coco)
    said = prepare('coco', zipped_coco).splitlines()[-1]
    assert said == f'{zipped_coco} is complete: 3 + 2 images'
    for path in small_coco.rglob('*.*'):
        copy = zipped_coco / path.relative_to(small_coco)
        assert copy.read_bytes() == path.read_bytes()
    assert names(zipped_coco) == sorted([*archives, *folders])
    for name in archives:  # They are needed no more.
        (zipped_coco / name).unlink()
    before = snapshot(zipped_coco)
    prepare('coco', zipped_coco)
    assert snapshot(zipped_coco) == before


def test_it_says_what_to_get(small_coco, tmp_path, refuse):
    root = tmp_path / 'empty'
    said = refuse('coco', root)
    for archive in set(coco.ARCHIVES.values()):
        assert archive in said
    assert 'https://cocodataset.org/#download' in said
    assert f'{root}/train2017/*.jpg' in said and '--download' in said
    assert not root.exists()

    shutil.rmtree(small_coco / 'val2017')
    said = refuse('coco', small_coco)
    assert 'val2017.zip' in said and 'train2017.zip' not in said


ANNOTATIONS = 'annotations/instances_train2017.json'
SECOND = 'train2017/000000000002.jpg'


def annotations(key, stop):
    """Cuts a list in those of the training images, or takes it out."""

    def damage(root):
        content = json.loads((root / ANNOTATIONS).read_text())
        part = content.pop(key)
        if stop:
            content[key] = part[:stop]
        (root / ANNOTATIONS).write_text(json.dumps(content))

    return damage


@pytest.mark.parametrize(
    'damage, sentence',
    [
        (
            lambda root: (root / SECOND).unlink(),
            'train2017 lacks 1 of 3 images, the first is 000000000002.jpg: ',
        ),
        (
            lambda root: cut(root / SECOND, 400),
            f'{SECOND} cannot be read (image file is trunc',
        ),
        (
            lambda root: Image.new('RGB', (7, 9)).save(root / SECOND),
            f'{SECOND} has 7 x 9 pixels',
        ),
        (
            lambda root: cut(root / ANNOTATIONS, 9),
            f'{ANNOTATIONS} is not an annotation file',
        ),
        (annotations('images', None), 'is not an annotation file'),
        (annotations('images', -1), 'lists 2 images instead of 3'),
        (annotations('categories', -1), 'has 79 classes instead of 80'),
    ],
)
def test_what_is_damaged_is_one_sentence(small_coco, refuse, damage, sentence):
    damage(small_coco)
    said = refuse('coco', small_coco)
    assert sentence in said and said.startswith(str(small_coco))
    assert said.count('\n') == 1


def test_a_broken_zip_leaves_nothing(zipped_coco, refuse):
    archive = zipped_coco / 'train2017.zip'
    content = bytearray(archive.read_bytes())
    content[200] ^= 255  # in the first image
    archive.write_bytes(content)
    before = set(names(zipped_coco))
    said = refuse('coco', zipped_coco)
    assert 'train2017.zip is broken' in said and 'fetch it again' in said
    assert set(names(zipped_coco)) - before <= {'annotations', 'val2017'}

    shutil.copy(zipped_coco / 'val2017.zip', archive)
    said = refuse('coco', zipped_coco)
    assert 'train2017.zip holds no train2017' in said


def test_an_interruption_leaves_no_half_folder(
    zipped_coco, prepare, monkeypatch
):
    before = names(zipped_coco)
    with monkeypatch.context() as patch:
        # Both annotation files are in place after two.
        failing = fail_after(2, zipfile.ZipFile.extract, KeyboardInterrupt)
        patch.setattr(zipfile.ZipFile, 'extract', lambda *args: failing(*args))
        with pytest.raises(KeyboardInterrupt):
            coco.prepare(zipped_coco)
    assert names(zipped_coco) == sorted([*before, 'annotations'])
    prepare('coco', zipped_coco)


def test_it_is_downloaded_if_wanted(
    zipped_coco, server, tmp_path, monkeypatch, prepare, refuse
):
    folder, address = server
    for path in zipped_coco.iterdir():
        shutil.move(path, folder)
    urls = {name: f'{address}/{name}' for name in coco.URLS}
    monkeypatch.setattr(coco, 'URLS', urls)
    monkeypatch.setattr(coco, 'MEGABYTES', dict.fromkeys(urls, 1))
    root = tmp_path / 'data' / 'coco'
    refuse('coco', root)
    assert not root.exists()
    prepare('coco', root, '--download')
    shutil.rmtree(folder)
    folder.mkdir()
    prepare('coco', root, '--download')  # not again

    said = refuse('coco', tmp_path / 'other', '--download')
    assert '.zip could not be fetched' in said
    assert f'put them into {tmp_path / "other"} as they are' in said
    assert names(tmp_path / 'other') == []


def test_it_is_not_downloaded_onto_a_small_disk(tmp_path, monkeypatch, refuse):
    monkeypatch.setattr(
        shutil, 'disk_usage', lambda _: shutil._ntuple_diskusage(1, 0, 4e10)
    )
    monkeypatch.setattr(coco, 'fetch_url', lambda *_: pytest.fail('fetches'))
    said = refuse('coco', tmp_path / 'coco', '--download')
    assert '40.8 GB of free disk are needed' in said
    assert '40.0 GB are left' in said
