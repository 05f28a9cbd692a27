"""Compose a segmentation set in Cityscapes' format from real pictures.

Items of Fashion-MNIST (Xiao et al., "Fashion-MNIST: a Novel Image Dataset for
Benchmarking Machine Learning Algorithms", 2017; MIT licence) are cut out and
pasted on the aerial photographs of trees that tree_crowns.py prepares. A mask
that is known from the source is exact: nobody has to draw it.

* Scenes for training show items of Fashion-MNIST's training split on
  photographs of tree_crowns/train, those for validation items of its test
  split on photographs of tree_crowns/val. No item occurs twice as long as
  there are enough.
* An item's pixels are those that are above its background in the source, and
  the holes between them. It stays grey, and gets a size and a contrast by
  chance, so that neither tells its class; later items cover earlier ones, but
  never too much.
* Everything random comes from the seed, the split and the scene's number: a
  small set is the beginning of a large one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scipy.ndimage import binary_fill_holes

from demo import tree_crowns
from sift_mm.cli.entry import Parser, entry_point
from sift_mm.datasets import fashion_mnist
from sift_mm.datasets.building import DataError, build

LAYOUT = 2  # to be raised when what is written changes


class Part(NamedTuple):
    """A class of Cityscapes and the labels of Fashion-MNIST that play it.

    `train_id` is its number there, which the label pictures hold.
    """

    name: str
    train_id: int
    labels: tuple[int, ...]


# A reader of Cityscapes knows no other names than these, so items have to go
# by them. Vegetation are the trees; all other parts were given in order and
# mean nothing. T-shirts and shirts are one class, since many of them cannot be
# told apart at 28 x 28 pixels.
PARTS = (
    Part('traffic sign', 7, (0, 6)),  # T-shirt/top, Shirt
    Part('vegetation', 8, ()),  # the photograph
    Part('person', 11, (1,)),  # Trouser
    Part('rider', 12, (2,)),  # Pullover
    Part('car', 13, (3,)),  # Dress
    Part('truck', 14, (4,)),  # Coat
    Part('bus', 15, (5,)),  # Sandal
    Part('train', 16, (7,)),  # Sneaker
    Part('motorcycle', 17, (8,)),  # Bag
    Part('bicycle', 18, (9,)),  # Ankle boot
)
CLASSES = tuple(part.name for part in PARTS)
BACKGROUND = 8
# The source's background is 0, but for traces of compression up to this.
DUST = 4

HEIGHT, WIDTH = 128, 256
ITEMS = (5, 8)  # in a scene, fewest and most
SIDES = (42, 84)  # of an item in a scene, in pixels: 1.5 to 3 times 28
MARGIN = 8  # by which an item may be out of the scene, in pixels
VISIBLE = 0.5  # part of an item that must be neither covered nor outside
TRIES = 100  # to place an item; all eight of a scene take 11 on average

SPLITS = {'train': 'train', 'val': 't10k'}  # ours, and Fashion-MNIST's


def read_items(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Items for `train` or `val`, uint8 (N, 28, 28), and their train ids."""
    # Here because it takes seconds, which a complete set need not cost.
    from torchvision.datasets.mnist import read_image_file, read_label_file

    stem = folder / SPLITS[split]
    items = read_image_file(f'{stem}-images-idx3-ubyte').numpy()
    labels = read_label_file(f'{stem}-labels-idx1-ubyte').numpy()
    train_ids = np.zeros(10, np.uint8)
    for part in PARTS:
        train_ids[list(part.labels)] = part.train_id
    return items, train_ids[labels]


def read_photos(folder: Path, split: str) -> list[Image.Image]:
    """Read the photographs for `train` or `val`, in RGB."""
    path = folder / 'annotations' / f'{split}.json'
    names = [i['file_name'] for i in json.loads(path.read_text())['images']]
    return [Image.open(folder / split / n).convert('RGB') for n in names]


def deal(train_ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shuffle items of these classes, of each as many as of the rarest.

    Returns their indices, none twice.
    """
    classes = [
        rng.permutation(np.flatnonzero(train_ids == i))
        for i in np.unique(train_ids)
    ]
    fewest = min(map(len, classes))
    return rng.permutation(np.concatenate([c[:fewest] for c in classes]))


def crop(photo: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """Scale a random window of a photograph to a scene, (128, 256, 3).

    Its width is at least half of what fits in.
    """
    ratio = HEIGHT / WIDTH
    width = min(photo.width, photo.height / ratio) * rng.uniform(0.5, 1)
    left = rng.uniform(0, photo.width - width)
    top = rng.uniform(0, photo.height - width * ratio)
    return np.array(
        photo.resize(
            (WIDTH, HEIGHT),
            Image.Resampling.BILINEAR,
            box=(left, top, left + width, top + width * ratio),
        )
    )


def cut_out(
    item: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Give an item, uint8 of shape (28, 28), a size, direction and contrast.

    Returns:
        Its picture as uint8 of shape (S, S, 3), and its mask as bool of shape
        (S, S), where S is its side in pixels.
    """
    side = (int(rng.integers(*SIDES, endpoint=True)),) * 2
    if rng.random() < 0.5:
        item = item[:, ::-1]
    # Pillow aligns the centres of pixels in both modes, so both fit.
    mask = Image.fromarray(binary_fill_holes(item > DUST).astype(np.uint8))
    shade = Image.fromarray(item).resize(side, Image.Resampling.BILINEAR)
    dark, bright = rng.uniform(0, 40), rng.uniform(180, 255)
    grey = dark + (bright - dark) * np.array(shade) / 255
    return (
        np.stack([grey.round().astype(np.uint8)] * 3, axis=-1),
        np.array(mask.resize(side, Image.Resampling.NEAREST), bool),
    )


def compose(
    background: np.ndarray,
    items: np.ndarray,
    train_ids: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Paste items, uint8 (N, 28, 28), on a picture, uint8 (128, 256, 3).

    Of every item at least half is visible in the end. One for which no such
    place is found is left out. Returns the scene and its label, (128, 256).
    """
    # With a margin, so that no item needs to be clipped.
    margins = ((MARGIN, MARGIN), (MARGIN, MARGIN))
    scene = np.pad(background, (*margins, (0, 0)))
    inside = (slice(MARGIN, -MARGIN),) * 2
    owner = np.zeros(scene.shape[:2], np.intp)  # number of the item on top
    areas: list[int] = []
    classes = [BACKGROUND]
    for item, train_id in zip(items, train_ids.tolist(), strict=True):
        number = len(classes)
        for _ in range(TRIES):
            colours, mask = cut_out(item, rng)
            top, left = rng.integers(
                0, np.subtract(owner.shape, mask.shape), endpoint=True
            )
            where = (
                slice(top, top + len(mask)),
                slice(left, left + len(mask)),
            )
            tried = owner.copy()
            tried[where][mask] = number
            visible = np.bincount(tried[inside].ravel(), minlength=number + 1)
            area = [*areas, np.count_nonzero(mask)]
            if np.all(visible[1:] >= VISIBLE * np.array(area)):
                scene[where][mask] = colours[mask]
                owner, areas = tried, area
                classes.append(train_id)
                break
    return scene[inside], np.array(classes, np.uint8)[owner[inside]]


def write_split(
    folder: Path,
    split: str,
    number: int,
    seed: int,
    fashion: Path,
    crowns: Path,
) -> None:
    """Write the scenes of a split with their labels; see :func:`prepare`."""
    print(f'composing {number} scenes for {split}', flush=True)
    items, train_ids = read_items(fashion, split)
    photos = read_photos(crowns, split)
    stream = list(SPLITS).index(split)
    order = deal(train_ids, np.random.default_rng((seed, stream, 0)))
    city = 'trees'
    images, labels = (
        folder / kind / split / city for kind in ('leftImg8bit', 'gtFine')
    )
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    for index in range(number):
        rng = np.random.default_rng((seed, stream, index + 1))
        first = index * ITEMS[1]
        last = first + rng.integers(*ITEMS, endpoint=True)
        chosen = order[np.arange(first, last) % len(order)]
        background = crop(photos[rng.integers(len(photos))], rng)
        scene, label = compose(
            background, items[chosen], train_ids[chosen], rng
        )
        stem = f'{city}_{index:06d}_{0:06d}'
        Image.fromarray(scene).save(images / f'{stem}_leftImg8bit.png')
        path = labels / f'{stem}_gtFine_labelTrainIds.png'
        Image.fromarray(label).save(path)


def prepare(
    root: Path,
    fashion: Path,
    crowns: Path,
    train: int = 600,
    val: int = 150,
    seed: int = 0,
) -> None:
    """Make the data set, and before it its sources, unless it is there.

    `fashion` is the folder of Fashion-MNIST, `crowns` that of the set that
    tree_crowns.py makes; `train` and `val` are numbers of scenes.

    Raises:
        DataError: If a source cannot be had, if `root` holds something else,
            or if a number makes no sense.
    """
    if min(train, val) < 1 or seed < 0:
        raise DataError(
            'There must be at least one scene for train and val, '
            'and the seed must not be negative.'
        )
    about: dict[str, Any] = dict(
        name='fashion_scenes', layout=LAYOUT, train=train, val=val, seed=seed
    )

    def make(folder: Path) -> None:
        fashion_mnist.prepare(fashion)
        tree_crowns.prepare(crowns)
        for split in SPLITS:
            write_split(folder, split, about[split], seed, fashion, crowns)

    build(root, about, make)


@entry_point
def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = Parser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument(
        '--root',
        type=Path,
        default=Path('data/fashion_scenes'),
        help='the folder to make (default: %(default)s)',
    )
    for option, default, what in (
        ('--train', 600, 'scenes for training'),
        ('--val', 150, 'scenes for validation'),
        ('--seed', 0, 'of everything random'),
    ):
        text = f'{what} (default: %(default)s)'
        parser.add_argument(option, type=int, default=default, help=text)
    args = parser.parse_args(arguments)
    sources = Path('data/fashion_mnist'), Path('data/tree_crowns')
    prepare(args.root, *sources, args.train, args.val, args.seed)
    print(f'{args.root} is complete')


if __name__ == '__main__':
    main()
