"""Data sets: what is missing is said, what is made is right, whole or not."""

import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import zipfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import minisets
import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from sift_mm.cli import prepare_data
from sift_mm.config import images
from sift_mm.datasets import (
    cifar100,
    cityscapes,
    coco,
    fashion_mnist,
    imagenet,
)
from sift_mm.datasets import (
    files as common,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def prepare(capsys):
    """Calls the tool; returns its status and what it said."""

    def call(name, root, *options):
        code = prepare_data.main([name, '--root', str(root), *options])
        said = capsys.readouterr()
        return code, said.err if code else said.out

    return call


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder and the address at which its files can be fetched."""
    folder = tmp_path / 'served'
    folder.mkdir()
    handler = partial(QuietHandler, directory=str(folder))
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield folder, f'http://127.0.0.1:{http.server_port}'
        http.shutdown()
        thread.join()


def md5(content):
    return hashlib.md5(content).hexdigest()


def snapshot(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob('*')}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def zip_of(archive, root, *items):
    """Zips folders and files as the official archives have them."""
    with zipfile.ZipFile(archive, 'w') as target:
        for item in items:
            for path in [root / item, *sorted((root / item).rglob('*'))]:
                target.write(path, path.relative_to(root))


def damage(archive):
    """Changes a byte of the first file's content."""
    content = bytearray(archive.read_bytes())
    content[200] ^= 255
    archive.write_bytes(content)


def full_disk(*_, **__):
    raise OSError(28, 'No space left on device')


# ------------------------------------------------------------ command line


def test_the_folders_are_those_of_the_configs():
    base = '{}/.mim/configs/_base_/datasets/{}.py'
    for name, library, config in (
        ('coco', 'mmdet', 'coco_instance'),
        ('cityscapes', 'mmseg', 'cityscapes'),
        ('cifar100', 'mmpretrain', 'cifar100_bs16'),
        ('imagenet', 'mmpretrain', 'imagenet_bs32'),
    ):
        spec = find_spec(library)
        path = Path(spec.submodule_search_locations[0]).parent / base.format(
            library, config
        )
        assert f"'{prepare_data.FOLDERS[name]}" in path.read_text()


def test_the_numbers_of_images_are_those_of_the_other_tools():
    for module, kind in (
        (coco, 'CocoDataset'),
        (cityscapes, 'CityscapesDataset'),
        (imagenet, 'ImageNet'),
    ):
        assert module.IMAGES['train'] == images.PUBLISHED[kind][1]


def test_the_script_says_what_is_wrong_and_fails(tmp_path):
    root = tmp_path / 'mine'
    done = subprocess.run(
        [sys.executable, ROOT / 'tools/prepare_data.py', 'imagenet']
        + ['--root', root],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert str(root) in done.stderr
    assert 'Traceback' not in done.stderr


def test_scratch_is_removed_also_after_an_error(tmp_path):
    with pytest.raises(KeyboardInterrupt), common.scratch(tmp_path) as work:
        (work / 'half').write_text('')
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_scratch_drops_what_a_killed_process_has_left(tmp_path):
    left = tmp_path / common.SCRATCH / 'work'
    left.mkdir(parents=True)
    (left / 'half').write_text('')
    with common.scratch(tmp_path) as work:
        assert names(work) == []
    assert names(tmp_path) == []


def test_two_processes_do_not_share_scratch(tmp_path):
    (tmp_path / common.SCRATCH).mkdir()
    with (
        FileLock(tmp_path / common.SCRATCH / 'lock'),
        pytest.raises(common.DataError, match='Another process prepares'),
        common.scratch(tmp_path),
    ):
        pytest.fail('got in')
    assert (tmp_path / common.SCRATCH).is_dir()  # the other still needs it


def test_scratch_is_locked_until_it_is_removed(tmp_path, monkeypatch):
    remove = shutil.rmtree

    def watched(path, **options):
        monkeypatch.undo()
        # It may be the first that is removed of its folder.
        (path / 'lock').unlink(missing_ok=True)
        with (
            pytest.raises(common.DataError, match='Another process'),
            common.scratch(tmp_path),
        ):
            pytest.fail('got in')
        remove(path, **options)

    with common.scratch(tmp_path):
        monkeypatch.setattr(shutil, 'rmtree', watched)
    assert names(tmp_path) == []


def test_scratch_does_not_mind_who_gets_in_at_the_end(tmp_path, monkeypatch):
    remove = shutil.rmtree

    def overtaken(path, **options):
        remove(path, **options)
        if path.name == 'work':
            remove(path.parent)

    with pytest.raises(KeyboardInterrupt), common.scratch(tmp_path):
        monkeypatch.setattr(shutil, 'rmtree', overtaken)
        raise KeyboardInterrupt


ABOUT = {'name': 'letters', 'layout': 1}


def make(root, content='new', **about):
    with common.made_whole(root, ABOUT | about) as work:
        (work / 'made' / 'train').mkdir()
        (work / 'made' / 'train' / 'a.txt').write_text(content)


def letter(root):
    return (root / 'train' / 'a.txt').read_text()


def test_a_set_is_made_whole_and_replaced(tmp_path):
    root = tmp_path / 'data' / 'set'
    make(root, 'old', layout=0)
    assert common.is_complete(root, ABOUT | {'layout': 0})
    assert not common.is_complete(root, ABOUT)
    make(root)
    assert common.is_complete(root, ABOUT)
    assert letter(root) == 'new'
    assert names(root.parent) == ['set']
    (root / 'train' / 'a.txt').write_text('half a letter')
    assert not common.is_complete(root, ABOUT)


@pytest.mark.parametrize('error', [OSError, KeyboardInterrupt])
@pytest.mark.parametrize('blocked', ['set', 'made'])
def test_an_error_at_the_last_moment_keeps_the_old_set(
    tmp_path, monkeypatch, blocked, error
):
    root = tmp_path / 'set'
    make(root, 'old')
    replace = os.replace

    def fails(source, target):
        if Path(source).name == blocked:
            raise error
        replace(source, target)

    monkeypatch.setattr(os, 'replace', fails)
    with pytest.raises(error):
        make(root)
    assert common.is_complete(root, ABOUT)
    assert letter(root) == 'old'
    assert names(tmp_path) == ['set']


def test_what_others_wrote_is_not_replaced(tmp_path):
    root = tmp_path / 'set'
    make(root, 'old')
    (tmp_path / 'far').mkdir()
    for name, add in {
        'notes.txt': lambda path: path.write_text('dear diary'),
        'train/b.txt': lambda path: path.write_text('b'),
        'far': lambda path: path.symlink_to(tmp_path / 'far'),
    }.items():
        add(root / name)
        with pytest.raises(common.DataError, match=f'{root / name} is not'):
            make(root)
        (root / name).unlink()  # is still there
    assert letter(root) == 'old'
    make(root)


def test_what_others_write_meanwhile_is_not_replaced(tmp_path):
    root = tmp_path / 'set'
    root.mkdir()
    with (
        pytest.raises(common.DataError, match='notes.txt is not'),
        common.made_whole(root, ABOUT),
    ):
        (root / 'notes.txt').write_text('dear diary')
    assert names(root) == ['notes.txt']
    assert names(tmp_path) == ['set']


def test_a_file_is_no_folder_to_replace(tmp_path):
    (tmp_path / 'set').write_text('dear diary')
    with pytest.raises(common.DataError, match='set is not'):
        make(tmp_path / 'set')
    assert (tmp_path / 'set').read_text() == 'dear diary'


@pytest.mark.parametrize(
    'prepared',
    [
        lambda disk: None,
        lambda disk: disk.mkdir(),
        lambda disk: make(disk, 'old'),
    ],
    ids=['nothing', 'empty', 'older'],
)
def test_a_link_to_another_disk_stays_one(tmp_path, prepared):
    disk, root = tmp_path / 'large' / 'set', tmp_path / 'set'
    disk.parent.mkdir()
    prepared(disk)
    root.symlink_to(disk)
    make(root)
    assert root.is_symlink()
    assert letter(disk) == 'new'
    assert names(disk.parent) == ['set']
    assert names(tmp_path) == ['large', 'set']


def test_two_processes_do_not_make_the_same_set(tmp_path):
    root = tmp_path / 'set'
    with common.made_whole(root, ABOUT):
        with pytest.raises(common.DataError, match='Another process prepares'):
            make(root)
        make(tmp_path / 'other')
    assert names(tmp_path) == ['other', 'set']


@pytest.mark.parametrize('manifest', [json.dumps(ABOUT), '[]', 'no JSON'])
def test_a_set_without_a_list_of_files_is_left_alone(tmp_path, manifest):
    root = tmp_path / 'set'
    make(root)
    (root / 'manifest.json').write_text(manifest)
    assert not common.is_complete(root, ABOUT)
    with pytest.raises(common.DataError, match='move it away'):
        make(root, layout=2)
    assert letter(root) == 'new'


def test_check_space(tmp_path):
    common.check_space(tmp_path / 'not' / 'there', 1)
    with pytest.raises(common.DataError, match='1000000.0 GB of free disk'):
        common.check_space(tmp_path / 'not' / 'there', 10**15)


@pytest.mark.parametrize(
    'number, taken', [(0, 0), (1, 1), (50, 50), (51, 26), (118_287, 50)]
)
def test_sample_is_small_and_spread(number, taken):
    found = common.sample(range(number))
    assert len(found) == taken
    assert not number or found[0] == 0 and found[-1] >= number * 0.97 - 1


def test_a_download_that_does_not_answer_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(common, 'TIMEOUT', 0.1)
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    with socket.create_server(('127.0.0.1', 0)) as silent:
        # Lets the test fail, not hang, where the time limit does not work.
        hang_up = threading.Timer(5, silent.shutdown, [socket.SHUT_RDWR])
        hang_up.start()
        url = f'http://127.0.0.1:{silent.getsockname()[1]}/file'
        with pytest.raises(common.DataError, match='timed out'):
            common.fetch_url(url, tmp_path)
        hang_up.cancel()
    assert socket.getdefaulttimeout() is None


def test_a_zip_cannot_write_elsewhere(tmp_path):
    root = tmp_path / 'a' / 'root'
    root.mkdir(parents=True)
    with zipfile.ZipFile(root / 'x.zip', 'w') as archive:
        archive.writestr('part/../../../evil', 'x')
        archive.writestr('part/good', 'x')
        archive.writestr('/part/evil', 'x')
        archive.writestr('other', 'x')
    common.unpack_zips(root, {'part': 'x.zip'})
    there = {p.name for p in tmp_path.rglob('*') if p.is_file()}
    assert there == {'x.zip', 'good', 'evil'}
    assert (root / 'part' / 'evil').is_file()
    assert names(root) == ['part', 'x.zip']


# -------------------------------------------------------------------- COCO


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


def test_coco_that_is_complete_is_only_checked(small_coco, prepare):
    before = snapshot(small_coco)
    code, said = prepare('coco', small_coco)
    assert (code, said.splitlines()[-1]) == (
        0,
        f'{small_coco} is complete: 3 + 2 images',
    )
    assert snapshot(small_coco) == before


def test_coco_is_unpacked_once(zipped_coco, small_coco, prepare):
    assert prepare('coco', zipped_coco)[0] == 0
    for path in small_coco.rglob('*.*'):
        copy = zipped_coco / path.relative_to(small_coco)
        assert copy.read_bytes() == path.read_bytes()
    before = snapshot(zipped_coco)
    assert prepare('coco', zipped_coco)[0] == 0
    assert snapshot(zipped_coco) == before
    assert common.SCRATCH not in names(zipped_coco)


def test_coco_says_what_to_get(tmp_path, prepare):
    root = tmp_path / 'empty'
    code, said = prepare('coco', root)
    assert code == 1
    for archive in set(coco.ARCHIVES.values()):
        assert archive in said
    assert 'https://cocodataset.org/#download' in said
    assert f'{root}/train2017/*.jpg' in said and '--download' in said
    assert not root.exists()


def test_coco_asks_only_for_what_is_missing(small_coco, prepare):
    shutil.rmtree(small_coco / 'val2017')
    code, said = prepare('coco', small_coco)
    assert code == 1
    assert 'val2017.zip' in said and 'train2017.zip' not in said


def test_coco_names_an_image_that_is_missing(small_coco, prepare):
    (small_coco / 'train2017' / '000000000002.jpg').unlink()
    code, said = prepare('coco', small_coco)
    assert code == 1
    assert (
        f'{small_coco}/train2017 lacks 1 of 3 images, the first is '
        '000000000002.jpg'
    ) in said
    assert said.count('\n') == 1


def test_coco_names_an_image_that_is_broken(small_coco, prepare):
    path = small_coco / 'val2017' / '000000000001.jpg'
    path.write_bytes(path.read_bytes()[:-400])
    code, said = prepare('coco', small_coco)
    assert code == 1
    assert f'{path} cannot be read' in said and 'truncated' in said


def test_coco_names_an_image_of_another_size(small_coco, prepare):
    path = small_coco / 'val2017' / '000000000002.jpg'
    Image.new('RGB', (7, 9)).save(path)
    code, said = prepare('coco', small_coco)
    assert code == 1
    assert f'{path} has 7 x 9 pixels' in said


@pytest.mark.parametrize(
    'change, sentence',
    [
        (lambda c: c['images'].pop(), 'lists 2 images instead of 3'),
        (lambda c: c['categories'].pop(), 'has 79 classes instead of 80'),
        (lambda c: c.pop('images'), 'is not an annotation file of COCO'),
    ],
)
def test_coco_refuses_other_annotations(small_coco, prepare, change, sentence):
    path = small_coco / 'annotations' / 'instances_train2017.json'
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    code, said = prepare('coco', small_coco)
    assert code == 1
    assert sentence in said and said.count('\n') == 1


def test_coco_refuses_annotations_cut_short(small_coco, prepare):
    path = small_coco / 'annotations' / 'instances_val2017.json'
    path.write_text(path.read_text()[:-9])
    code, said = prepare('coco', small_coco)
    assert code == 1
    assert f'{path} is not an annotation file of COCO' in said


def test_a_broken_zip_leaves_nothing(zipped_coco, prepare):
    damage(zipped_coco / 'train2017.zip')
    before = names(zipped_coco)
    code, said = prepare('coco', zipped_coco)
    assert code == 1
    assert 'train2017.zip is broken' in said and 'fetch it again' in said
    assert not {'train2017', common.SCRATCH} & set(names(zipped_coco))
    assert set(before) <= set(names(zipped_coco))


def test_a_zip_of_something_else_is_refused(zipped_coco, prepare):
    shutil.copy(zipped_coco / 'val2017.zip', zipped_coco / 'train2017.zip')
    code, said = prepare('coco', zipped_coco)
    assert code == 1
    assert 'train2017.zip holds no train2017' in said


def test_a_full_disk_leaves_no_half_folder(zipped_coco, prepare, monkeypatch):
    extract = zipfile.ZipFile.extract
    calls = []

    def two_files(self, member, path):
        calls.append(member)
        return (extract if len(calls) < 3 else full_disk)(self, member, path)

    before = names(zipped_coco)
    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, 'extract', two_files)
        # Both annotation files are in place after two.
        assert prepare('coco', zipped_coco) == (
            1,
            '[Errno 28] No space left on device\n',
        )
    assert names(zipped_coco) == sorted([*before, 'annotations'])
    assert prepare('coco', zipped_coco)[0] == 0


def test_coco_is_downloaded_if_wanted(
    zipped_coco, server, tmp_path, monkeypatch, prepare
):
    folder, address = server
    for path in zipped_coco.iterdir():
        shutil.move(path, folder)
    urls = {name: f'{address}/{name}' for name in coco.URLS}
    monkeypatch.setattr(coco, 'URLS', urls)
    monkeypatch.setattr(coco, 'MEGABYTES', dict.fromkeys(urls, 1))
    root = tmp_path / 'data' / 'coco'
    assert prepare('coco', root)[0] == 1
    assert not root.exists()
    assert prepare('coco', root, '--download')[0] == 0
    assert not (root / common.SCRATCH).exists()

    monkeypatch.setattr(common, 'fetch_url', lambda *_: pytest.fail('again'))
    assert prepare('coco', root, '--download')[0] == 0


def test_coco_says_what_to_do_where_it_cannot_be_downloaded(
    tmp_path, monkeypatch, prepare
):
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    urls = dict.fromkeys(coco.URLS, 'http://127.0.0.1:1/x.zip')
    monkeypatch.setattr(coco, 'URLS', urls)
    monkeypatch.setattr(coco, 'MEGABYTES', dict.fromkeys(urls, 1))
    root = tmp_path / 'coco'
    code, said = prepare('coco', root, '--download')
    assert code == 1
    assert 'x.zip could not be fetched' in said
    assert f'put them into {root} as they are' in said
    assert names(root) == []


def test_coco_is_not_downloaded_onto_a_small_disk(
    tmp_path, monkeypatch, prepare
):
    monkeypatch.setattr(
        shutil, 'disk_usage', lambda _: shutil._ntuple_diskusage(1, 0, 4e10)
    )
    monkeypatch.setattr(coco, 'fetch_url', lambda *_: pytest.fail('fetches'))
    code, said = prepare('coco', tmp_path / 'coco', '--download')
    assert code == 1
    assert '40.8 GB of free disk are needed' in said
    assert '40.0 GB are left' in said


# -------------------------------------------------------------- Cityscapes


def box(x1, y1, x2, y2):
    return [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]


# PIL draws the border of a polygon too: all corners below are labelled.
OBJECTS = [
    dict(label='road', polygon=box(0, 2, 7, 4)),
    dict(label='sky', polygon=box(0, 0, 7, 0)),
    dict(label='car', polygon=box(1, 1, 3, 3)),
    dict(label='license plate', polygon=box(2, 2, 2, 2)),  # is not drawn
    dict(label='persongroup', polygon=box(5, 1, 6, 2)),
    dict(label='parking', polygon=box(4, 4, 7, 4)),  # not a class to learn
    dict(label='bus', polygon=box(0, 0, 7, 4), deleted=1),
]
DRAWN = """
 10  10  10  10  10  10  10  10
255  13  13  13 255  11  11 255
  0  13  13  13   0  11  11   0
  0  13  13  13   0   0   0   0
  0   0   0   0 255 255 255 255
255 255 255 255 255 255 255 255
"""
STEM = 'aachen_000000_000019'


class OneProcess:
    """Stands for a pool: faster, and monkeypatch reaches it."""

    def __init__(self, _):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def map(self, function, items, chunksize):
        return [function(item) for item in items]


@pytest.fixture
def small_cityscapes(tmp_path, monkeypatch):
    """Three images with polygons, of which none is converted."""
    pytest.importorskip('cityscapesscripts')
    monkeypatch.setattr(cityscapes, 'IMAGES', {'train': 2, 'val': 1})
    monkeypatch.setattr(cityscapes, 'ProcessPoolExecutor', OneProcess)
    root = minisets.mini_cityscapes(tmp_path / 'cityscapes', 2, 1)
    for path in root.glob('leftImg8bit/*/*/*.png'):
        Image.new('RGB', (8, 6)).save(path)
    for path in root.glob('gtFine/*/*/*.png'):
        polygons = path.name.replace('labelTrainIds.png', 'polygons.json')
        content = dict(imgHeight=6, imgWidth=8, objects=OBJECTS)
        path.with_name(polygons).write_text(json.dumps(content))
        path.unlink()
    return root


def labels_of(root, split='train'):
    return sorted(root.glob(f'gtFine/{split}/*/*{cityscapes.LABELS}'))


@pytest.mark.parametrize('pool', [OneProcess, ProcessPoolExecutor])
def test_cityscapes_labels_are_as_worked_by_hand(
    small_cityscapes, prepare, monkeypatch, pool
):
    monkeypatch.setattr(cityscapes, 'ProcessPoolExecutor', pool)
    code, said = prepare('cityscapes', small_cityscapes)
    assert code == 0
    assert said.endswith(f'{small_cityscapes} is complete: 2 + 1 images\n')
    drawn = [*labels_of(small_cityscapes), *labels_of(small_cityscapes, 'val')]
    assert len(drawn) == 3
    for path in drawn:
        with Image.open(path) as image:
            assert image.mode == 'L'
            pixels = np.asarray(image)
        expected = np.array([row.split() for row in DRAWN.split('\n')[1:-1]])
        np.testing.assert_array_equal(pixels, expected.astype(int))


def test_cityscapes_is_converted_once(small_cityscapes, prepare):
    assert prepare('cityscapes', small_cityscapes)[0] == 0
    before = snapshot(small_cityscapes)
    assert prepare('cityscapes', small_cityscapes)[0] == 0
    assert snapshot(small_cityscapes) == before
    assert names(small_cityscapes) == ['gtFine', 'leftImg8bit']

    lost, kept = labels_of(small_cityscapes)
    lost.unlink()
    assert prepare('cityscapes', small_cityscapes)[0] == 0
    assert snapshot(small_cityscapes)[kept] == before[kept]
    assert lost.is_file()


def test_cityscapes_is_read_by_mmseg_files(small_cityscapes, prepare):
    """Each image has its labels where CityscapesDataset looks for them."""
    prepare('cityscapes', small_cityscapes)
    for image in small_cityscapes.glob('leftImg8bit/*/*/*_leftImg8bit.png'):
        labels = str(image).replace('leftImg8bit/', 'gtFine/')
        labels = labels.replace(
            '_leftImg8bit.png', '_gtFine_labelTrainIds.png'
        )
        assert os.path.isfile(labels)


def test_cityscapes_is_unpacked(small_cityscapes, tmp_path, prepare):
    root = tmp_path / 'zipped'
    (small_cityscapes / 'gtFine' / 'test').mkdir()
    (small_cityscapes / 'gtFine' / 'test' / 'x').write_text('')
    (small_cityscapes / 'README').write_text('')
    root.mkdir()
    for folder in ('leftImg8bit', 'gtFine'):
        zip_of(
            root / f'{folder}_trainvaltest.zip',
            small_cityscapes,
            'README',
            folder,
        )
    assert prepare('cityscapes', root)[0] == 0
    assert len(labels_of(root)) == 2
    assert names(root / 'gtFine') == ['train', 'val']


def test_cityscapes_says_what_to_get(tmp_path, prepare):
    root = tmp_path / 'none'
    code, said = prepare('cityscapes', root)
    assert code == 1
    assert 'leftImg8bit_trainvaltest.zip (11 GB)' in said
    assert 'gtFine_trainvaltest.zip (241 MB)' in said
    assert 'https://www.cityscapes-dataset.com/downloads/' in said
    assert f'{root}/gtFine/{{train,val}}/CITY/*_gtFine_polygons.json' in said
    assert not root.exists()


def test_cityscapes_counts_images(small_cityscapes, prepare):
    next(small_cityscapes.glob('leftImg8bit/val/*/*')).unlink()
    (small_cityscapes / 'leftImg8bit/val/more').mkdir()
    code, said = prepare('cityscapes', small_cityscapes)
    assert code == 1
    assert 'leftImg8bit/val holds 0 images' in said and 'instead of 1' in said


def test_cityscapes_names_polygons_that_are_missing(small_cityscapes, prepare):
    path = small_cityscapes / f'gtFine/train/aachen/{STEM}'
    Path(f'{path}{cityscapes.POLYGONS}').unlink()
    code, said = prepare('cityscapes', small_cityscapes)
    assert code == 1
    assert f'lacks the polygons of 1 images, the first is aachen/{STEM}' in (
        said
    )


@pytest.mark.parametrize(
    'content, why',
    [
        ('{', 'JSONDecodeError'),
        ('{}', 'KeyError'),
        (
            json.dumps(
                dict(
                    imgHeight=6,
                    imgWidth=8,
                    objects=[dict(label='dragon', polygon=box(0, 0, 2, 2))],
                )
            ),
            "Label 'dragon' not known",
        ),
    ],
)
def test_cityscapes_names_broken_polygons(
    small_cityscapes, prepare, content, why
):
    path = (
        small_cityscapes / f'gtFine/train/aachen/{STEM}_gtFine_polygons.json'
    )
    path.write_text(content)
    code, said = prepare('cityscapes', small_cityscapes)
    assert code == 1
    assert f'{path} cannot be converted' in said and why in said
    # The other one is done, and nothing else is left.
    assert len(labels_of(small_cityscapes)) == 1
    assert names(small_cityscapes) == ['gtFine', 'leftImg8bit']


def test_a_crash_leaves_no_half_labels(small_cityscapes, prepare, monkeypatch):
    save = Image.Image.save

    def half(self, path):
        save(self, path)
        content = Path(path).read_bytes()
        Path(path).write_bytes(content[: len(content) // 2])
        full_disk()

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, 'save', half)
        assert prepare('cityscapes', small_cityscapes) == (
            1,
            '[Errno 28] No space left on device\n',
        )
    assert labels_of(small_cityscapes) == []
    assert names(small_cityscapes) == ['gtFine', 'leftImg8bit']
    assert prepare('cityscapes', small_cityscapes)[0] == 0


@pytest.mark.parametrize(
    'labels, sentence',
    [
        (Image.new('L', (8, 6), 19), 'holds [19] besides the classes 0 to 18'),
        (Image.new('RGB', (8, 6), 0), 'holds RGB besides'),
        (Image.new('L', (6, 8), 18), 'has 6 x 8 pixels, its image 8 x 6'),
    ],
)
def test_cityscapes_refuses_wrong_labels(
    small_cityscapes, prepare, labels, sentence
):
    path = small_cityscapes / f'gtFine/train/aachen/{STEM}{cityscapes.LABELS}'
    labels.save(path)
    code, said = prepare('cityscapes', small_cityscapes)
    assert code == 1
    assert f'{path} {sentence}' in said


# --------------------------------------------------------------- CIFAR-100


@pytest.fixture
def small_cifar(tmp_path, monkeypatch):
    """A folder with the archive; its hashes are taken for the right ones."""
    root = tmp_path / 'cifar'
    root.mkdir()
    contents = {
        f'cifar-100-python/{name}': pickle.dumps(name)
        for name in ('train', 'test', 'meta')
    }
    with tarfile.open(root / cifar100.ARCHIVE, 'w:gz') as archive:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    digests = {name: md5(content) for name, content in contents.items()}
    monkeypatch.setattr(cifar100, 'MD5', digests)
    digest = md5((root / cifar100.ARCHIVE).read_bytes())
    monkeypatch.setattr(cifar100, 'ARCHIVE_MD5', digest)
    return root


def test_cifar_is_unpacked_once(small_cifar, prepare):
    code, said = prepare('cifar100', small_cifar)
    assert code == 0
    assert said.endswith('is complete: 50,000 + 10,000 images\n')
    assert names(small_cifar / 'cifar-100-python') == ['meta', 'test', 'train']
    before = snapshot(small_cifar)
    assert prepare('cifar100', small_cifar)[0] == 0
    assert snapshot(small_cifar) == before


def test_cifar_refuses_an_archive_cut_short(small_cifar, prepare):
    archive = small_cifar / cifar100.ARCHIVE
    archive.write_bytes(archive.read_bytes()[:-20])
    code, said = prepare('cifar100', small_cifar)
    assert code == 1
    assert f'{archive} is broken or not of CIFAR-100' in said
    assert names(small_cifar) == [cifar100.ARCHIVE]


def test_cifar_refuses_a_file_cut_short(small_cifar, prepare):
    prepare('cifar100', small_cifar)
    path = small_cifar / 'cifar-100-python' / 'train'
    path.write_bytes(path.read_bytes()[:-1])
    code, said = prepare('cifar100', small_cifar)
    assert code == 1
    assert f'{path} is broken' in said and 'remove it' in said
    path.unlink()
    assert prepare('cifar100', small_cifar)[0] == 0


@pytest.mark.parametrize('cut', [0, 20])
def test_cifar_is_downloaded(small_cifar, server, tmp_path, monkeypatch,
                             prepare, cut):  # fmt: skip
    folder, address = server
    content = (small_cifar / cifar100.ARCHIVE).read_bytes()
    (folder / cifar100.ARCHIVE).write_bytes(content[cut:])
    monkeypatch.setattr(
        cifar100.CIFAR100, 'url', f'{address}/{cifar100.ARCHIVE}'
    )
    root = tmp_path / 'data' / 'cifar100'
    code, said = prepare('cifar100', root)
    assert code == (1 if cut else 0)
    if cut:
        assert f'Get {cifar100.ARCHIVE} (169 MB) from https://www.cs' in said
    assert names(root) == ([] if cut else ['cifar-100-python'])


def test_cifar_keeps_to_its_folder(small_cifar, monkeypatch, prepare):
    archive = small_cifar / cifar100.ARCHIVE
    with tarfile.open(archive, 'w:gz') as target:
        target.addfile(tarfile.TarInfo('../../evil'))
    monkeypatch.setattr(cifar100, 'ARCHIVE_MD5', md5(archive.read_bytes()))
    code, said = prepare('cifar100', small_cifar)
    assert code == 1
    assert 'is broken' in said and 'outside the destination' in said
    assert names(small_cifar) == [cifar100.ARCHIVE]
    assert not (small_cifar / '..' / 'evil').exists()


# ----------------------------------------------------------- Fashion-MNIST


def idx(kind, shape):
    """An IDX file of zeros."""
    header = struct.pack(f'>{1 + len(shape)}i', kind, *shape)
    return header + bytes(int(np.prod(shape)))


@pytest.fixture
def small_fashion(tmp_path, monkeypatch):
    """A folder with the compressed files; nothing else can be had."""
    root = tmp_path / 'fashion'
    root.mkdir()
    contents = {
        'train-images-idx3-ubyte': idx(0x0803, (6, 28, 28)),
        'train-labels-idx1-ubyte': idx(0x0801, (6,)),
        't10k-images-idx3-ubyte': idx(0x0803, (2, 28, 28)),
        't10k-labels-idx1-ubyte': idx(0x0801, (2,)),
    }
    assert contents.keys() == fashion_mnist.MD5.keys()
    for name, content in contents.items():
        (root / f'{name}.gz').write_bytes(gzip.compress(content))
    digests = {name: md5(content) for name, content in contents.items()}
    monkeypatch.setattr(fashion_mnist, 'MD5', digests)
    monkeypatch.setattr(fashion_mnist, 'INSTALLED', Path('/nowhere'))
    monkeypatch.setattr(fashion_mnist, 'URL', 'http://127.0.0.1:1/')
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    monkeypatch.setattr(fashion_mnist.shutil, 'which', lambda _: None)
    return root


def plain(root):
    return [name for name in names(root) if '.' not in name]


def test_fashion_mnist_is_unpacked_once(small_fashion, prepare):
    code, said = prepare('fashion_mnist', small_fashion)
    assert code == 0
    assert said.endswith('is complete: 60,000 + 10,000 images\n')
    assert plain(small_fashion) == sorted(fashion_mnist.MD5)
    before = snapshot(small_fashion)
    assert prepare('fashion_mnist', small_fashion)[0] == 0
    assert snapshot(small_fashion) == before

    from torchvision.datasets.mnist import read_image_file

    path = small_fashion / 'train-images-idx3-ubyte'
    assert read_image_file(str(path)).shape == (6, 28, 28)


@pytest.mark.parametrize('cut', [1, 12])
def test_fashion_mnist_refuses_a_compressed_file_cut_short(
    small_fashion, prepare, cut
):
    path = small_fashion / 'train-images-idx3-ubyte.gz'
    path.write_bytes(path.read_bytes()[:-cut])
    code, said = prepare('fashion_mnist', small_fashion)
    assert code == 1
    assert f'{path} is broken' in said and said.count('\n') == 1
    assert 'train-images-idx3-ubyte' not in names(small_fashion)
    assert common.SCRATCH not in names(small_fashion)


def test_fashion_mnist_refuses_another_compressed_file(small_fashion, prepare):
    path = small_fashion / 't10k-labels-idx1-ubyte.gz'
    path.write_bytes(gzip.compress(idx(0x0801, (3,))))  # digits, say
    code, said = prepare('fashion_mnist', small_fashion)
    assert code == 1
    assert f'{path} is broken or not of Fashion-MNIST' in said
    assert 't10k-labels-idx1-ubyte' not in names(small_fashion)


def test_fashion_mnist_refuses_a_file_cut_short(small_fashion, prepare):
    prepare('fashion_mnist', small_fashion)
    path = small_fashion / 't10k-images-idx3-ubyte'
    path.write_bytes(path.read_bytes()[:-1])
    code, said = prepare('fashion_mnist', small_fashion)
    assert code == 1
    assert f'{path} is broken' in said
    path.unlink()
    assert prepare('fashion_mnist', small_fashion)[0] == 0


def test_fashion_mnist_of_an_installed_package(
    small_fashion, tmp_path, monkeypatch, prepare
):
    monkeypatch.setattr(fashion_mnist, 'INSTALLED', small_fashion)
    root = tmp_path / 'data' / 'fashion_mnist'
    assert prepare('fashion_mnist', root)[0] == 0
    assert names(root) == sorted(fashion_mnist.MD5)


def test_fashion_mnist_is_downloaded(
    small_fashion, server, tmp_path, monkeypatch, prepare
):
    folder, address = server
    for path in small_fashion.iterdir():
        shutil.move(path, folder)
    monkeypatch.setattr(fashion_mnist, 'URL', f'{address}/')
    root = tmp_path / 'data' / 'fashion_mnist'
    assert prepare('fashion_mnist', root)[0] == 0
    assert names(root) == sorted(fashion_mnist.MD5)


@pytest.mark.skipif(not shutil.which('dpkg-deb'), reason='no dpkg-deb')
def test_fashion_mnist_of_a_debian_package(
    small_fashion, tmp_path, monkeypatch, prepare
):
    tree = tmp_path / 'tree'
    installed = tree / 'usr/share/datasets/fashion-mnist'
    shutil.copytree(small_fashion, installed)
    (tree / 'DEBIAN').mkdir()
    (tree / 'DEBIAN' / 'control').write_text(
        f'Package: {fashion_mnist.PACKAGE}\nVersion: 1\nArchitecture: all\n'
        'Maintainer: Nobody <nobody@example.org>\nDescription: small\n'
    )
    deb = tmp_path / 'small_1_all.deb'
    subprocess.run(
        ['dpkg-deb', '-b', tree, deb], check=True, capture_output=True
    )
    run = fashion_mnist.run

    def run_or_copy(folder, program, *arguments):
        if program == 'apt-get':
            assert arguments[-2:] == ('download', fashion_mnist.PACKAGE)
            shutil.copy(deb, folder)
        else:
            run(folder, program, *arguments)

    monkeypatch.setattr(fashion_mnist, 'run', run_or_copy)
    monkeypatch.setattr(fashion_mnist.shutil, 'which', lambda name: name)
    monkeypatch.setattr(
        fashion_mnist, 'INSTALLED', Path('/usr/share/datasets/fashion-mnist')
    )
    monkeypatch.setattr(
        fashion_mnist, 'unpack', skip_installed(fashion_mnist.unpack)
    )
    root = tmp_path / 'data' / 'fashion_mnist'
    assert prepare('fashion_mnist', root)[0] == 0
    assert names(root) == sorted(fashion_mnist.MD5)


def skip_installed(unpack):
    """Hides a package that is installed on the machine of the test."""

    def visible(folder, root, work):
        if folder != fashion_mnist.INSTALLED:
            unpack(folder, root, work)

    return visible


def test_fashion_mnist_says_what_to_get(small_fashion, prepare):
    (small_fashion / 't10k-labels-idx1-ubyte.gz').unlink()
    code, said = prepare('fashion_mnist', small_fashion)
    assert code == 1
    assert (
        'get t10k-labels-idx1-ubyte.gz from '
        f'https://github.com/zalandoresearch/fashion-mnist, put them into '
        f'{small_fashion}'
    ) in said
    assert len(plain(small_fashion)) == 3


# ---------------------------------------------------------------- ImageNet

# Its own numbers of the classes follow neither their names nor the order of
# the validation images. The fifth one is not a class but a parent of some.
SYNSETS = [
    (1, 'n01484850', 0),
    (2, 'n01440764', 0),
    (3, 'n01443537', 0),
    (4, 'n99999999', 2),
]
TRUTH = [3, 1, 1, 2, 3, 2]
FOLDERS = ['n01443537', 'n01484850', 'n01484850', 'n01440764', 'n01443537',
           'n01440764']  # fmt: skip


def jpeg(level):
    stream = io.BytesIO()
    Image.new('RGB', (4, 4), (level, level, level)).save(stream, 'JPEG')
    return stream.getvalue()


def add(archive, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def tar_of(contents):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode='w') as archive:
        for name, content in contents.items():
            add(archive, name, content)
    return stream.getvalue()


def devkit():
    scipy_io = pytest.importorskip('scipy.io')
    synsets = np.array(
        [
            (number, name, f'{name}, thing', 'a thing', children, 0, 0, 0)
            for number, name, children in SYNSETS
        ],
        dtype=[
            (field, object)
            for field in (
                'ILSVRC2012_ID,WNID,words,gloss,num_children,children,'
                'wordnet_height,num_train_images'
            ).split(',')
        ],
    )
    mat = io.BytesIO()
    scipy_io.savemat(mat, {'synsets': synsets.reshape(-1, 1)})
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode='w:gz') as archive:
        folder = 'ILSVRC2012_devkit_t12/data'
        add(archive, f'{folder}/meta.mat', mat.getvalue())
        add(
            archive,
            f'{folder}/ILSVRC2012_validation_ground_truth.txt',
            ''.join(f'{number}\n' for number in TRUTH).encode(),
        )
    return stream.getvalue()


def val_name(number):
    return f'ILSVRC2012_val_{number:08d}.JPEG'


@pytest.fixture
def small_imagenet(tmp_path, monkeypatch):
    """The three archives of nine images of three classes."""
    root = tmp_path / 'imagenet'
    root.mkdir()
    monkeypatch.setattr(imagenet, 'IMAGES', {'train': 3, 'val': 6})
    monkeypatch.setattr(imagenet, 'CLASSES', 3)
    contents = {
        'train': tar_of(
            {
                f'{name}.tar': tar_of({f'{name}_7.JPEG': jpeg(number)})
                for number, name, children in SYNSETS
                if not children
            }
        ),
        'val': tar_of({val_name(n): jpeg(n) for n in (4, 1, 6, 2, 3, 5)}),
        'devkit': devkit(),
    }
    for part, content in contents.items():
        name = imagenet.ARCHIVE_META[part][0]
        (root / name).write_bytes(content)
        monkeypatch.setitem(imagenet.ARCHIVE_META, part, (name, md5(content)))
    return root


def val_tree(root):
    return sorted(str(p.relative_to(root)) for p in root.glob('val/*/*'))


VAL_TREE = sorted(f'val/{f}/{val_name(n)}' for n, f in enumerate(FOLDERS, 1))


def flat_val(root):
    """Unpacks the validation images as people do, into one folder."""
    archive = root / imagenet.ARCHIVE_META['val'][0]
    with tarfile.open(archive) as source:
        source.extractall(root / 'val', filter='data')
    archive.unlink()


def test_imagenet_is_unpacked_once(small_imagenet, prepare):
    code, said = prepare('imagenet', small_imagenet)
    assert code == 0
    assert said.endswith('is complete: 3 + 6 images\n')
    assert val_tree(small_imagenet) == VAL_TREE
    assert (small_imagenet / f'val/n01443537/{val_name(5)}').read_bytes() == (
        jpeg(5)
    )
    train = small_imagenet / 'train'
    assert sorted(str(p.relative_to(train)) for p in train.glob('*/*')) == [
        'n01440764/n01440764_7.JPEG',
        'n01443537/n01443537_7.JPEG',
        'n01484850/n01484850_7.JPEG',
    ]
    before = snapshot(small_imagenet)
    assert prepare('imagenet', small_imagenet)[0] == 0
    assert snapshot(small_imagenet) == before
    assert len(names(small_imagenet)) == 5


def test_imagenet_needs_no_archives_when_it_is_complete(
    small_imagenet, prepare
):
    prepare('imagenet', small_imagenet)
    for path in small_imagenet.glob('*.tar*'):
        path.unlink()
    assert prepare('imagenet', small_imagenet)[0] == 0
    assert names(small_imagenet) == ['train', 'val']


def test_flat_validation_images_are_sorted(small_imagenet, prepare):
    flat_val(small_imagenet)
    assert prepare('imagenet', small_imagenet)[0] == 0
    assert val_tree(small_imagenet) == VAL_TREE
    assert imagenet.flat_images(small_imagenet / 'val') == []


def test_an_interrupted_sort_is_finished(small_imagenet, prepare, monkeypatch):
    flat_val(small_imagenet)
    replace, moved = os.replace, []

    def three(source, target):
        if 'val_' in str(source):
            moved.append(source)
        (replace if len(moved) < 4 else full_disk)(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, 'replace', three)
        assert prepare('imagenet', small_imagenet)[0] == 1
    assert len(val_tree(small_imagenet)) == 3
    assert prepare('imagenet', small_imagenet)[0] == 0
    assert val_tree(small_imagenet) == VAL_TREE


@pytest.mark.parametrize('name', ['7', '0', 'x'])
def test_an_image_that_is_not_of_validation_is_named(
    small_imagenet, prepare, name
):
    flat_val(small_imagenet)
    path = small_imagenet / 'val' / f'ILSVRC2012_val_{name}.JPEG'
    path.write_bytes(jpeg(0))
    code, said = prepare('imagenet', small_imagenet)
    assert code == 1
    assert f'{path} is none of the 6 validation images' in said


def test_a_flat_val_with_a_list_is_left_as_it_is(small_imagenet, prepare):
    """MMPreTrain reads it by the list; moved, it would not find them."""
    flat_val(small_imagenet)
    meta = small_imagenet / 'meta'
    meta.mkdir()
    (meta / 'val.txt').write_text(
        ''.join(f'{val_name(n)} {n % 3}\n' for n in range(1, 7))
    )
    assert prepare('imagenet', small_imagenet)[0] == 0
    assert len(imagenet.flat_images(small_imagenet / 'val')) == 6

    (small_imagenet / 'val' / val_name(4)).unlink()
    code, said = prepare('imagenet', small_imagenet)
    assert code == 1
    assert f'the first is {val_name(4)}' in said

    (meta / 'val.txt').write_text('no_class\n')
    code, said = prepare('imagenet', small_imagenet)
    assert code == 1
    assert 'val.txt should have the path and the class' in said


def test_imagenet_says_what_to_get(tmp_path, prepare):
    root = tmp_path / 'none'
    code, said = prepare('imagenet', root)
    assert code == 1
    for archive, _ in imagenet.ARCHIVE_META.values():
        assert archive in said
    assert 'https://image-net.org/download-images' in said
    assert f'{root}/val/WNID/*.JPEG' in said
    assert not root.exists()


def test_imagenet_asks_for_the_devkit_to_sort_val(small_imagenet, prepare):
    flat_val(small_imagenet)
    prepared = small_imagenet / imagenet.ARCHIVE_META['devkit'][0]
    prepared.unlink()
    code, said = prepare('imagenet', small_imagenet)
    assert code == 1
    assert 'ILSVRC2012_devkit_t12.tar.gz' in said
    assert 'ILSVRC2012_img_val.tar' not in said
    assert len(imagenet.flat_images(small_imagenet / 'val')) == 6


def test_imagenet_says_that_scipy_is_missing(
    small_imagenet, prepare, monkeypatch
):
    monkeypatch.setattr(imagenet, 'find_spec', lambda _: None)
    code, said = prepare('imagenet', small_imagenet)
    assert code == 1
    assert '`pip install scipy`' in said


@pytest.mark.parametrize('part', ['train', 'val', 'devkit'])
def test_imagenet_refuses_an_archive_cut_short(small_imagenet, prepare, part):
    path = small_imagenet / imagenet.ARCHIVE_META[part][0]
    path.write_bytes(path.read_bytes()[:-100])
    code, said = prepare('imagenet', small_imagenet)
    assert code == 1
    assert f'{path} is missing, broken or another file' in said
    assert ('train' if part == 'train' else 'val') not in names(small_imagenet)
    assert common.SCRATCH not in names(small_imagenet)


def test_a_full_disk_leaves_no_half_imagenet(
    small_imagenet, prepare, monkeypatch
):
    extract, calls = tarfile.TarFile.extractall, []

    def two(self, *args, **kwargs):
        calls.append(args)
        (extract if len(calls) < 3 else full_disk)(self, *args, **kwargs)

    before = names(small_imagenet)
    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, 'extractall', two)
        assert prepare('imagenet', small_imagenet)[0] == 1
    assert names(small_imagenet) == before
    assert prepare('imagenet', small_imagenet)[0] == 0


def test_imagenet_counts(small_imagenet, prepare):
    prepare('imagenet', small_imagenet)
    (small_imagenet / VAL_TREE[0]).unlink()
    code, said = prepare('imagenet', small_imagenet)
    assert code == 1
    assert 'val holds 5 images of 3 classes instead of 6 of 3' in said


def test_imagenet_compares_the_classes(small_imagenet, prepare):
    prepare('imagenet', small_imagenet)
    (small_imagenet / 'val/n01440764').rename(small_imagenet / 'val/n1')
    code, said = prepare('imagenet', small_imagenet)
    assert code == 1
    assert 'different classes, n01440764 is in one of them only' in said


def test_imagenet_names_an_image_that_is_broken(small_imagenet, prepare):
    prepare('imagenet', small_imagenet)
    path = small_imagenet / VAL_TREE[2]
    path.write_bytes(b'\xff\xd8')
    code, said = prepare('imagenet', small_imagenet)
    assert code == 1
    assert f'{path} cannot be read' in said
