"""Scenes of pasted items: their format, their masks, what a failure leaves."""

import json
import shutil
import struct
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from demo import fashion_scenes as tool

# Colours of the photographs that no item can have: the darkest shade has at
# most 80 in every channel, and the brightest at least 120.
PHOTOS = {'train': (0, 0, 255), 'val': (0, 255, 0)}
LABELS = {'train': (0, 1, 2, 3, 4, 6), 'val': (5, 7, 8, 9)}
COPIES = 6
SCENES = dict(train=4, val=2)
KINDS = {
    'leftImg8bit': 'leftImg8bit.png',
    'gtFine': 'gtFine_labelTrainIds.png',
}


def write_idx(stem, items, labels):
    """Write pictures and labels as MNIST's readers expect them."""
    Path(f'{stem}-images-idx3-ubyte').write_bytes(
        struct.pack('>4I', 2051, *items.shape) + items.tobytes()
    )
    Path(f'{stem}-labels-idx1-ubyte').write_bytes(
        struct.pack('>2I', 2049, len(labels)) + bytes(labels)
    )


def some_items(number, seed):
    """Boxes of noise, each with a hole, on black."""
    rng = np.random.default_rng(seed)
    items = np.zeros((number, 28, 28), np.uint8)
    for item in items:
        top, left = rng.integers(0, 8, 2)
        bottom, right = rng.integers(18, 29, 2)
        box = item[top:bottom, left:right]
        box[:] = rng.integers(1, 256, box.shape)
        item[12:14, 12:14] = 0
    return items


@pytest.fixture(scope='module')
def sources(tmp_path_factory):
    """Both sources; every class and every photograph is in one split only."""
    root = tmp_path_factory.mktemp('sources')
    fashion, crowns = root / 'fashion', root / 'crowns'
    fashion.mkdir()
    (crowns / 'annotations').mkdir(parents=True)
    for split, stem in (('train', 'train'), ('val', 't10k')):
        labels = LABELS[split] * COPIES
        write_idx(fashion / stem, some_items(len(labels), len(labels)), labels)
        (crowns / split).mkdir()
        images = []
        for index, size in enumerate([(256, 256), (90, 70)]):
            name = f'{index}.png'
            Image.new('RGB', size, PHOTOS[split]).save(crowns / split / name)
            images.append(dict(id=index, file_name=name))
        (crowns / 'annotations' / f'{split}.json').write_text(
            json.dumps(dict(images=images, annotations=[], categories=[]))
        )
    return fashion, crowns


@pytest.fixture(scope='module', autouse=True)
def sources_are_there():
    with (
        mock.patch.object(tool.fashion_mnist, 'prepare'),
        mock.patch.object(tool.tree_crowns, 'prepare'),
    ):
        yield


@pytest.fixture(scope='module')
def made(sources, tmp_path_factory):
    root = tmp_path_factory.mktemp('made') / 'scenes'
    tool.prepare(root, *sources, **SCENES)
    return root


def contents(root):
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob('*')
        if path.is_file()
    }


def pairs(root, split):
    """The scenes of a split and their labels, as arrays."""
    for path in sorted((root / 'leftImg8bit' / split).rglob('*.png')):
        label = Path(str(path).replace('leftImg8bit', 'gtFine'))
        label = label.with_name(path.name.replace(*KINDS.values()))
        with Image.open(path) as scene, Image.open(label) as ids:
            yield np.array(scene), np.array(ids)


def test_parts_are_cityscapes_classes_and_all_labels_play():
    from mmseg.datasets import CityscapesDataset

    names = CityscapesDataset.METAINFO['classes']
    assert [p.train_id for p in tool.PARTS] == [
        names.index(p.name) for p in tool.PARTS
    ]
    assert tool.CLASSES == tuple(n for n in names if n in tool.CLASSES)
    assert len(tool.CLASSES) == 10
    labels = [label for p in tool.PARTS for label in p.labels]
    assert sorted(labels) == list(range(10))
    # T-shirts and shirts share a class, nothing else does.
    assert sorted(len(p.labels) for p in tool.PARTS) == [0] + [1] * 8 + [2]
    assert tool.PARTS[0].labels == (0, 6)
    assert names[tool.BACKGROUND] == 'vegetation'
    assert tool.PARTS[1] == ('vegetation', tool.BACKGROUND, ())


@pytest.mark.parametrize('split', SCENES)
def test_mmseg_reads_it(made, split):
    from mmseg.datasets import CityscapesDataset

    dataset = CityscapesDataset(
        data_root=str(made),
        data_prefix=dict(
            img_path=f'leftImg8bit/{split}', seg_map_path=f'gtFine/{split}'
        ),
        metainfo=dict(classes=tool.CLASSES),
        pipeline=[
            dict(type='mmseg.LoadImageFromFile'),
            dict(type='mmseg.LoadAnnotations'),
        ],
    )
    assert len(dataset) == SCENES[split]
    ids = np.array([p.train_id for p in tool.PARTS])
    for sample, (scene, label) in zip(
        dataset, pairs(made, split), strict=True
    ):
        np.testing.assert_array_equal(sample['img'], scene[..., ::-1])
        np.testing.assert_array_equal(ids[sample['gt_seg_map']], label)


@pytest.mark.parametrize('split', SCENES)
def test_the_label_says_exactly_where_the_photograph_is_seen(made, split):
    for scene, label in pairs(made, split):
        photograph = np.all(scene == PHOTOS[split], axis=-1)
        np.testing.assert_array_equal(photograph, label == tool.BACKGROUND)
        assert 0.05 < photograph.mean() < 0.95


def test_each_split_shows_its_own_items_only(made):
    ids = {label: p.train_id for p in tool.PARTS for label in p.labels}
    for split in SCENES:
        seen = {i for _, label in pairs(made, split) for i in np.unique(label)}
        assert seen == {ids[i] for i in LABELS[split]} | {tool.BACKGROUND}


def test_no_item_occurs_twice_while_they_last(sources, tmp_path, monkeypatch):
    chosen = []

    def compose(background, items, train_ids, rng):
        assert background.shape == (128, 256, 3)
        chosen.append([item.tobytes() for item in items])
        return background, background[..., 0]

    monkeypatch.setattr(tool, 'compose', compose)
    tool.prepare(tmp_path / 'scenes', *sources, **SCENES)
    assert len(chosen) == sum(SCENES.values())
    assert all(5 <= len(items) <= 8 for items in chosen)
    # Of the 36 items for training, 30 are left when the two labels of one
    # class are not more frequent than the others. Three scenes need up to 24.
    flat = [item for items in chosen[:3] + chosen[4:] for item in items]
    assert len(set(flat)) == len(flat)


def test_deal_makes_classes_equally_frequent():
    train_ids = np.array([7] * 20 + [11] * 5 + [18] * 9)
    order = tool.deal(train_ids, np.random.default_rng(0))
    assert len(set(order.tolist())) == len(order) == 15
    assert np.bincount(train_ids[order])[[7, 11, 18]].tolist() == [5, 5, 5]
    again = tool.deal(train_ids, np.random.default_rng(1))
    assert order.tolist() != again.tolist()


def test_a_small_set_is_the_beginning_of_a_large_one(sources, made, tmp_path):
    tool.prepare(tmp_path / 'small', *sources, train=2, val=1)
    small, large = contents(tmp_path / 'small'), contents(made)
    del small['manifest.json']
    assert len(small) == 6
    assert small.items() <= large.items()


def test_holes_are_part_of_an_item_and_the_outside_is_not():
    item = np.zeros((28, 28), np.uint8)
    item[4:24, 4:24] = 5  # any value but those of dust belongs to it
    item[0, :4] = 4
    item[10:14, 10:14] = 0
    for seed in range(20):
        print('seed', seed)
        _, mask = tool.cut_out(item, np.random.default_rng(seed))
        rows, columns = mask.any(axis=1), mask.any(axis=0)
        np.testing.assert_array_equal(mask, np.outer(rows, columns))
        assert abs(rows.mean() - 20 / 28) < 0.03
        assert not mask[0].any() and not mask[:, 0].any()


@pytest.mark.parametrize('axis', [0, 1])
def test_picture_and_mask_have_the_same_geometry(axis):
    item = np.zeros((28, 28), np.uint8)
    item[3:16] = 255
    item = item if axis == 0 else np.ascontiguousarray(item.T)
    sides, first = set(), set()
    for seed in range(150):
        print('seed', seed)
        colours, mask = tool.cut_out(item, np.random.default_rng(seed))
        assert colours.shape == (*mask.shape, 3)
        assert colours.dtype == np.uint8 and mask.dtype == bool
        assert len(mask) == mask.shape[1]
        sides.add(len(mask))
        first.add(bool(mask[:5].any() or mask[:, :5].any()))
        dark, bright = colours.min((0, 1)), colours.max((0, 1))
        assert (dark <= 40).all() and (bright >= 180).all()
        assert (colours == colours[..., :1]).all()  # Grey, as the source.
        # Half way between both is the edge, where a pixel may be of either.
        shade = ((colours - dark) / (bright - dark.astype(float))).mean(-1)
        clear = abs(shade - 0.5) > 0.02
        np.testing.assert_array_equal(shade[clear] > 0.5, mask[clear])
    assert min(sides) == 42 and max(sides) == 84


def test_later_items_cover_earlier_ones_but_never_too_much(monkeypatch):
    monkeypatch.setattr(tool, 'SIDES', (60, 60))
    background = np.full((128, 256, 3), PHOTOS['train'], np.uint8)
    items = np.full((6, 28, 28), 255, np.uint8)
    train_ids = np.array([11, 12, 13, 14, 15, 16], np.uint8)
    covered = 0
    for seed in range(20):
        print('seed', seed)
        _, label = tool.compose(
            background, items, train_ids, np.random.default_rng(seed)
        )
        assert label.shape == (128, 256) and label.dtype == np.uint8
        seen = np.unique(label).tolist()
        assert seen[0] == tool.BACKGROUND
        for number in seen[1:]:
            rows, columns = np.nonzero(label == number)
            sides = np.ptp(rows) + 1, np.ptp(columns) + 1
            assert len(rows) >= 60 * 60 / 2
            assert max(sides) <= 60
            covered += len(rows) < np.prod(sides)
        # Nothing covers the last one, and it is hardly out of the scene.
        assert len(rows) == np.prod(sides)
        assert min(sides) >= 60 - 8
    assert covered


def test_what_finds_no_place_is_left_out(monkeypatch):
    monkeypatch.setattr(tool, 'VISIBLE', 2)
    monkeypatch.setattr(tool, 'TRIES', 2)
    background = np.arange(128 * 256 * 3).reshape(128, 256, 3)
    background = background.astype(np.uint8)
    scene, label = tool.compose(
        background,
        some_items(2, 0),
        np.array([7, 11], np.uint8),
        np.random.default_rng(0),
    )
    np.testing.assert_array_equal(scene, background)
    assert np.unique(label).tolist() == [tool.BACKGROUND]


def test_the_background_is_a_window_of_the_photograph():
    # Rows and columns can be read off the colours of this picture.
    y, x = np.mgrid[:200, :250]
    photo = Image.fromarray(np.stack([x, y, x], -1).astype(np.uint8))
    corners = set()
    for seed in range(20):
        print('seed', seed)
        window = tool.crop(photo, np.random.default_rng(seed)).astype(float)
        assert window.shape == (128, 256, 3)
        width, height = np.ptp(window[..., 0]), np.ptp(window[..., 1])
        assert 120 <= width <= 250
        assert abs(width - 2 * height) <= 4
        corners.add(tuple(window[0, 0]))
    assert len(corners) == 20


def test_it_is_made_once_and_anew_for_other_numbers(sources, made, tmp_path):
    root, none = tmp_path / 'scenes', tmp_path / 'none'
    shutil.copytree(made, root)
    tool.prepare(root, none, none, **SCENES)  # asks for no source
    tool.prepare(root, *sources, **SCENES, seed=1)
    first, other = next(pairs(made, 'train')), next(pairs(root, 'train'))
    assert not np.array_equal(first[1], other[1])


def test_sources_are_prepared_or_it_is_said_why_not(
    sources, tmp_path, monkeypatch
):
    prepared = []
    monkeypatch.setattr(tool.fashion_mnist, 'prepare', prepared.append)

    def refuse(root):
        prepared.append(root)
        raise tool.DataError('no network')

    monkeypatch.setattr(tool.tree_crowns, 'prepare', refuse)
    with pytest.raises(tool.DataError, match='no network'):
        tool.prepare(tmp_path / 'scenes', *sources, **SCENES)
    assert prepared == list(sources)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line(sources, made, tmp_path, monkeypatch, capsys):
    data = tmp_path / 'data'
    data.mkdir()
    for source, name in zip(
        sources, ('fashion_mnist', 'tree_crowns'), strict=True
    ):
        (data / name).symlink_to(source)
    monkeypatch.chdir(tmp_path)
    tool.main(['--train', '4', '--val', '2'])
    assert 'data/fashion_scenes is complete' in capsys.readouterr().out
    assert contents(data / 'fashion_scenes') == contents(made)
    with pytest.raises(SystemExit):
        tool.main(['--root', 'other', '--train', '0'])
    error = capsys.readouterr().err
    assert error.startswith('There must be at least one scene')
    assert error.count('\n') == 1 and error.endswith('.\n')
