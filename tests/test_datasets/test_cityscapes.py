"""Cityscapes: polygons become the labels that MMSegmentation reads."""

import json
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import minisets
import numpy as np
import pytest
from datafiles import names, snapshot, zip_of
from PIL import Image

from sift_mm.datasets import cityscapes


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
FIRST = 'gtFine/train/aachen/aachen_000000_000019'


def annotation(objects):
    return json.dumps(dict(imgHeight=6, imgWidth=8, objects=objects))


class OneProcess(nullcontext):
    """Stands for a pool: faster, and monkeypatch reaches it."""

    def __enter__(self):
        return self

    def map(self, function, items, chunksize):
        return [function(item) for item in items]


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Three images with polygons, of which none is converted."""
    monkeypatch.setattr(cityscapes, 'IMAGES', {'train': 2, 'val': 1})
    monkeypatch.setattr(cityscapes, 'ProcessPoolExecutor', OneProcess)
    root = minisets.mini_cityscapes(tmp_path / 'cityscapes', 2, 1)
    for path in root.glob('leftImg8bit/*/*/*.png'):
        Image.new('RGB', (8, 6)).save(path)
    for path in root.glob('gtFine/*/*/*.png'):
        polygons = path.name.replace('labelTrainIds.png', 'polygons.json')
        path.with_name(polygons).write_text(annotation(OBJECTS))
        path.unlink()
    return root


def labels_of(root):
    return sorted(root.glob(f'gtFine/*/*/*{cityscapes.LABELS}'))


@pytest.mark.parametrize('pool', [OneProcess, ProcessPoolExecutor])
def test_labels_are_as_worked_by_hand(root, prepare, monkeypatch, pool):
    monkeypatch.setattr(cityscapes, 'ProcessPoolExecutor', pool)
    said = prepare('cityscapes', root)
    assert said.endswith(f'{root} is complete: 2 + 1 images\n')
    drawn = labels_of(root)
    # Each image has its labels where CityscapesDataset looks for them.
    assert [str(path) for path in drawn] == [
        str(path)
        .replace('leftImg8bit/', 'gtFine/')
        .replace('_leftImg8bit.png', '_gtFine_labelTrainIds.png')
        for path in sorted(root.glob('leftImg8bit/*/*/*_leftImg8bit.png'))
    ]
    expected = np.array([row.split() for row in DRAWN.split('\n')[1:-1]])
    for path in drawn:
        with Image.open(path) as image:
            assert image.mode == 'L'
            pixels = np.asarray(image)
        np.testing.assert_array_equal(pixels, expected.astype(int))


def test_it_is_converted_once(root, prepare):
    prepare('cityscapes', root)
    before = snapshot(root)
    prepare('cityscapes', root)
    assert snapshot(root) == before
    assert names(root) == ['gtFine', 'leftImg8bit']

    lost, *kept = labels_of(root)
    lost.unlink()
    prepare('cityscapes', root)
    assert {path: snapshot(root)[path] for path in kept} == {
        path: before[path] for path in kept
    }
    assert lost.is_file()


def test_archives_are_unpacked(root, tmp_path, prepare):
    zipped = tmp_path / 'zipped'
    zipped.mkdir()
    (root / 'gtFine' / 'test').mkdir()
    (root / 'gtFine' / 'test' / 'x').write_text('')
    (root / 'README').write_text('')
    for folder in ('leftImg8bit', 'gtFine'):
        zip_of(zipped / f'{folder}_trainvaltest.zip', root, 'README', folder)
    prepare('cityscapes', zipped)
    assert len(labels_of(zipped)) == 3
    assert names(zipped / 'gtFine') == ['train', 'val']


def test_it_says_what_to_get(tmp_path, refuse):
    root = tmp_path / 'none'
    said = refuse('cityscapes', root)
    assert 'leftImg8bit_trainvaltest.zip (11 GB)' in said
    assert 'gtFine_trainvaltest.zip (241 MB)' in said
    assert 'https://www.cityscapes-dataset.com/downloads/' in said
    assert f'{root}/gtFine/{{train,val}}/CITY/*_gtFine_polygons.json' in said
    assert not root.exists()


def no_val(root):
    next(root.glob('leftImg8bit/val/*/*')).unlink()
    (root / 'leftImg8bit/val/more').mkdir()


def polygons(text):
    return lambda root: Path(
        f'{root / FIRST}_gtFine_polygons.json'
    ).write_text(text)


def labels(*image):
    return lambda root: Image.new(*image).save(
        f'{root / FIRST}{cityscapes.LABELS}'
    )


DRAGON = [dict(label='dragon', polygon=box(0, 0, 2, 2))]


@pytest.mark.parametrize(
    'damage, sentence',
    [
        (no_val, 'leftImg8bit/val holds 0 images *_leftImg8bit.png instead'),
        (
            lambda root: Path(f'{root / FIRST}_gtFine_polygons.json').unlink(),
            'gtFine/train lacks the polygons of 1 images, the first is aachen',
        ),
        (polygons('{'), 'polygons.json cannot be converted (JSONDecodeError'),
        (polygons('{}'), "polygons.json cannot be converted (KeyError('"),
        (
            polygons(annotation(DRAGON)),
            "polygons.json cannot be converted (ERROR: Label 'dragon'",
        ),
        (labels('L', (8, 6), 19), 'holds [19] besides the classes 0 to 18'),
        (labels('RGB', (8, 6), 0), 'holds RGB besides'),
        (labels('L', (6, 8), 18), 'has 6 x 8 pixels, its image 8 x 6'),
    ],
)
def test_what_is_damaged_is_one_sentence(root, refuse, damage, sentence):
    damage(root)
    said = refuse('cityscapes', root)
    assert sentence in said and said.startswith(str(root))
    assert said.count('\n') == 1
    assert names(root) == ['gtFine', 'leftImg8bit']


def test_a_crash_leaves_no_half_labels(root, prepare, refuse, monkeypatch):
    save = Image.Image.save

    def half(self, path):
        save(self, path)
        content = Path(path).read_bytes()
        Path(path).write_bytes(content[: len(content) // 2])
        raise OSError(28, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, 'save', half)
        said = refuse('cityscapes', root)
    assert said == '[Errno 28] No space left on device\n'
    assert labels_of(root) == []
    assert names(root) == ['gtFine', 'leftImg8bit']
    prepare('cityscapes', root)
