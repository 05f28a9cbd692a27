"""The demo's data: what is cut, what counts, what a failure leaves."""

import hashlib
import io
import json
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo import tree_crowns as tool
from sift_mm.errors import UserError


def voc(boxes):
    objects = ''.join(
        '<object><name>Tree</name><bndbox><xmin>{}</xmin><ymin>{}</ymin>'
        '<xmax>{}</xmax><ymax>{}</ymax></bndbox></object>'.format(*box)
        for box in boxes
    )
    return f'<annotation>{objects}</annotation>'.encode()


def png(width, height):
    """Draw a picture in which every pixel tells its place."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x % 256, y % 256, x // 256 * 16 + y // 256], axis=-1)
    stream = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(stream, 'PNG')
    return stream.getvalue()


# Two photographs: the first, 300 x 700, has its validation tile at (44, 444)
# and its training region above row 316; the second is one training tile.
BOXES = {
    'large': [
        (10, 10, 50, 40),  # in the upper training tiles
        (60, 446, 80, 476),  # in the validation tile
        (24, 600, 84, 640),  # two thirds of it are right of column 44
        (24, 650, 64, 690),  # half of it: not more, does not count
        (100, 340, 140, 380),  # in the gap
    ],
    'small': [(0, 0, 256, 256)],
}
SIZES = {'large': (300, 700), 'small': (256, 256)}


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    path = tmp_path / 'deepforest-2.1.0-py3-none-any.whl'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr(tool.LICENSE, 'MIT')
        for name, boxes in BOXES.items():
            archive.writestr(f'deepforest/data/{name}.xml', voc(boxes))
            archive.writestr(f'deepforest/data/{name}.png', png(*SIZES[name]))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(tool, 'WHEEL_SHA256', digest)
    monkeypatch.setattr(
        tool, 'PHOTOS', (tool.Photo('large', 1), tool.Photo('small', 0))
    )
    return path


@pytest.mark.parametrize(
    'box, part, counts',
    [
        ((110, 60, 130, 90), (10, 10, 30, 40), True),  # inside
        ((90, 60, 130, 80), (0, 10, 30, 30), True),  # 3/4, clipped left
        ((90, 60, 110, 80), (0, 10, 10, 30), False),  # exactly 1/2
        ((340, 60, 369, 80), (240, 10, 256, 30), True),  # 16/29, right
        ((340, 296, 380, 316), (240, 246, 256, 256), False),  # 1/5, corner
        ((0, 0, 1000, 1000), (0, 0, 256, 256), False),  # larger than a tile
        ((80, 60, 100, 80), None, None),  # touches the border only
        ((400, 60, 420, 80), None, None),  # elsewhere
    ],
)
def test_cut_counts_what_is_more_than_half_visible(box, part, counts):
    tile = tool.Window(100, 50, 356, 306)
    parts, counted = tool.cut(np.array([box], dtype=float), tile)
    assert parts.shape[1] == 4
    assert list(map(tuple, parts)) == ([] if part is None else [part])
    assert counted.tolist() == ([] if part is None else [counts])


# The sizes are those of the real photographs.
@pytest.mark.parametrize(
    'width, height, val_rows, val_tiles',
    [(2299, 2472, 2, 16), (1249, 1035, 1, 4)],
)
def test_no_pixel_is_in_both_splits_nor_in_the_gap(
    width, height, val_rows, val_tiles
):
    regions = tool.split(width, height, val_rows)
    used = {}
    for name, overlap in dict(train=tool.OVERLAP, val=0).items():
        used[name] = np.zeros((height, width), dtype=int)
        for left, top, right, bottom in tool.tiles(regions[name], overlap):
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height
            used[name][top:bottom, left:right] += 1
    assert not np.any((used['train'] > 0) & (used['val'] > 0))
    assert used['val'].max() == 1  # no crown is counted twice
    assert used['val'].sum() == val_tiles * 256**2
    last_trained = np.flatnonzero(used['train'].any(axis=1)).max()
    first_tested = np.flatnonzero(used['val'].any(axis=1)).min()
    assert first_tested - last_trained - 1 == tool.GAP == 128


KEYS = ('id', 'image_id', 'category_id', 'bbox', 'area', 'iscrowd')


def test_the_set_that_is_made(wheel, tmp_path):
    root = tmp_path / 'data' / 'crowns'
    tool.prepare(root, wheel)
    val = json.loads((root / 'annotations' / 'val.json').read_text())
    assert val['categories'] == [{'id': 1, 'name': 'tree'}]
    assert val['images'] == [
        {'id': 1, 'file_name': 'large_44_444.png', 'width': 256, 'height': 256}
    ]
    assert val['annotations'] == [
        dict(zip(KEYS, (number, 1, 1, *row), strict=True))
        for number, row in enumerate(
            [
                ([16, 2, 20, 30], 600, 0),
                ([0, 156, 40, 40], 1600, 0),
                ([0, 206, 20, 40], 800, 1),
            ],
            1,
        )
    ]
    train = json.loads((root / 'annotations' / 'train.json').read_text())
    # Of the four tiles above the gap, one corner each at (0, 0) and (44, 60),
    # those that start at row 60 hold no crown.
    found = [i['file_name'] for i in train['images']]
    assert found == ['large_0_0.png', 'small_0_0.png']
    found = [(a['id'], a['image_id'], a['bbox']) for a in train['annotations']]
    assert found == [(1, 1, [10, 10, 40, 30]), (2, 2, [0, 0, 256, 256])]
    # A tile shows its own place.
    with Image.open(root / 'val' / 'large_44_444.png') as picture:
        assert picture.mode == 'RGB'
        pixels = np.asarray(picture)
    assert pixels.shape == (256, 256, 3)
    assert pixels[0, 0].tolist() == [44, 444 % 256, 444 // 256]
    assert pixels[-1, -1].tolist() == [299 % 256, 699 % 256, 16 + 699 // 256]


def test_it_is_made_once_and_replaces_no_other_files(wheel, tmp_path):
    root = tmp_path / 'crowns'
    tool.prepare(root, wheel)
    tool.prepare(root, tmp_path / 'no.whl')  # asks for no source
    (root / 'annotations' / 'val.json').unlink()
    with pytest.raises(UserError, match='holds other files'):
        tool.prepare(root, wheel)


@pytest.mark.parametrize(
    'damage',
    [
        lambda wheel: wheel.write_bytes(wheel.read_bytes()[:-100]),
        lambda wheel: wheel.unlink(),
    ],
)
def test_a_wrong_wheel_is_one_sentence_and_leaves_nothing(
    wheel, tmp_path, capsys, damage
):
    damage(wheel)
    root = tmp_path / 'data' / 'crowns'
    with pytest.raises(SystemExit):
        tool.main(['--root', str(root), '--wheel', str(wheel)])
    said = capsys.readouterr().err
    assert 'broken or not the wheel of deepforest==2.1.0' in said
    assert one_sentence(said)
    assert list(root.parent.iterdir()) == []


def test_a_download_is_used(wheel, tmp_path, monkeypatch):
    calls = pip_that(monkeypatch, 0, wheel=wheel)
    root = tmp_path / 'data' / 'crowns'
    tool.prepare(root)
    assert (root / 'val' / 'large_44_444.png').is_file()
    assert [p.name for p in root.parent.iterdir()] == ['crowns']
    assert calls[0][1:4] == ['-m', 'pip', 'download']
    assert '--no-deps' in calls[0]
    assert calls[0][-1] == 'deepforest==2.1.0'


def one_sentence(text):
    return text.count('\n') == 1 and text.endswith('.\n')


def pip_that(monkeypatch, code, stderr='', wheel=None):
    """Replace pip by something that ends so and delivers that wheel."""
    calls = []

    def run(command, **_):
        calls.append(command)
        if wheel is not None:
            dest = next(a for a in command if a.startswith('--dest='))
            Path(dest[7:], wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, code, '', stderr)

    monkeypatch.setattr(tool.subprocess, 'run', run)
    return calls


def test_a_failed_download_is_one_sentence_and_leaves_nothing(
    tmp_path, capsys, monkeypatch
):
    pip_that(monkeypatch, 1, 'WARNING: retrying\nERROR: no network\n')
    root = tmp_path / 'data' / 'crowns'
    with pytest.raises(SystemExit):
        tool.main(['--root', str(root)])
    captured = capsys.readouterr()
    assert 'could not be downloaded (no network)' in captured.err
    assert one_sentence(captured.err)
    assert list(root.parent.iterdir()) == []
