"""Tiny data sets in the layouts of the real ones, made on the spot.

They look enough like the real thing that the libraries' own dataset classes
and metrics read them: COCO, Cityscapes and ImageNet. Each is made in
a folder, which it returns: the ``data_root``. The same arguments make the
same pixels. There is no CIFAR: MMPreTrain checks the MD5 of its files.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

# The real ids leave gaps, which a reader has to cope with.
COCO_GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
# The classes that occur, with their colours: nothing is easier to learn.
COCO_USED = {
    'person': (220, 40, 40),
    'car': (40, 200, 40),
    'dog': (50, 60, 230),
}
IMAGENET_FOLDERS = ('n01440764', 'n01443537', 'n01484850', 'n01491361')


def _noise(
    rng: np.random.Generator, height: int, width: int, level: int = 128
) -> Image.Image:
    """Return an image of grey noise around a level."""
    pixels = rng.normal(level, 20, (height, width, 3)).clip(0, 255)
    return Image.fromarray(pixels.astype(np.uint8))


def mini_coco(
    root: Path,
    num_train: int = 8,
    num_val: int = 4,
    size: tuple[int, int] = (64, 128),
) -> Path:
    """Make a detection set in the layout of COCO 2017.

    Rectangles of three of the 80 classes, one colour a class, with boxes and
    polygons, on images of sides from and to ``size`` pixels. Later objects
    may cover earlier ones.
    """
    from mmdet.datasets import CocoDataset  # It takes seconds.

    names = CocoDataset.METAINFO['classes']
    numbers = [i for i in range(1, 91) if i not in COCO_GAPS]
    ids = dict(zip(names, numbers, strict=True))
    (root / 'annotations').mkdir(parents=True)
    for split, number in (('train', num_train), ('val', num_val)):
        folder = root / f'{split}2017'
        folder.mkdir()
        rng = np.random.default_rng(len(split))
        images: list[dict] = []
        annotations: list[dict] = []
        for image_id in range(1, number + 1):
            width, height = map(int, rng.integers(*size, 2, endpoint=True))
            image = _noise(rng, height, width)
            for _ in range(rng.integers(1, 4)):
                name = str(rng.choice(list(COCO_USED)))
                w = int(rng.integers(width // 4, width // 2))
                h = int(rng.integers(height // 4, height // 2))
                x = int(rng.integers(0, width - w))
                y = int(rng.integers(0, height - h))
                corners = [x, y, x + w, y, x + w, y + h, x, y + h]
                ImageDraw.Draw(image).polygon(corners, fill=COCO_USED[name])
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=image_id,
                        category_id=ids[name],
                        bbox=[x, y, w, h],
                        area=w * h,
                        segmentation=[corners],
                        iscrowd=0,
                    )
                )
            file_name = f'{image_id:012d}.jpg'
            image.save(folder / file_name, quality=95)
            one = dict(id=image_id, file_name=file_name)
            images.append(one | dict(width=width, height=height))
        content = dict(
            images=images,
            annotations=annotations,
            categories=[dict(id=i, name=n) for n, i in ids.items()],
        )
        path = root / 'annotations' / f'instances_{split}2017.json'
        path.write_text(json.dumps(content))
    return root


def mini_cityscapes(root: Path, num_train: int = 4, num_val: int = 2) -> Path:
    """Make a segmentation set in the layout of Cityscapes.

    Streets of sky, buildings, road, a car and a person, with labels that
    are train ids; the lowest rows are not labelled (255).
    """
    height, width = 64, 128
    for split, city, number in (
        ('train', 'aachen', num_train),
        ('val', 'frankfurt', num_val),
    ):
        rng = np.random.default_rng((0, len(city)))
        image_dir = root / 'leftImg8bit' / split / city
        label_dir = root / 'gtFine' / split / city
        image_dir.mkdir(parents=True)
        label_dir.mkdir(parents=True)
        for index in range(number):
            image = _noise(rng, height, width)
            label = Image.new('L', (width, height), 255)
            draws = ImageDraw.Draw(image), ImageDraw.Draw(label)
            x = int(rng.integers(0, width // 2))
            horizon = int(rng.integers(height // 4, height // 2))
            foot = height * 3 // 4
            for shape, box, colour, train_id in (
                ('rectangle', (0, 0, width, horizon), (90, 150, 220), 10),
                ('rectangle', (0, horizon, width, foot), (120, 90, 60), 2),
                ('rectangle', (0, foot, width, height - 4), (80, 70, 80), 0),
                ('rectangle', (x, foot - 8, x + width // 4, foot + 4),
                 (30, 30, 160), 13),
                ('ellipse', (x + width // 3, foot - 12, x + width // 3 + 8,
                             foot + 4), (220, 30, 60), 11),
            ):  # fmt: skip
                getattr(draws[0], shape)(box, fill=colour)
                getattr(draws[1], shape)(box, fill=train_id)
            stem = f'{city}_{index:06d}_000019'
            image.save(image_dir / f'{stem}_leftImg8bit.png')
            label.save(label_dir / f'{stem}_gtFine_labelTrainIds.png')
    return root


def mini_imagenet(
    root: Path, num_train: int = 4, num_val: int = 2, num_classes: int = 3
) -> Path:
    """Make a classification set in the layout of ImageNet.

    The brightness of an image tells its class. ``train`` and ``val`` hold
    one folder a class, at most four, as CustomDataset reads them; ``meta``
    has the lists of images and labels by which ImageNet reads them as the
    first of its 1000 classes. Numbers are of images of each class.
    """
    (root / 'meta').mkdir(parents=True)
    for split, number in (('train', num_train), ('val', num_val)):
        rng = np.random.default_rng(len(split))
        lines = []
        for label, name in enumerate(IMAGENET_FOLDERS[:num_classes]):
            folder = root / split / name
            folder.mkdir(parents=True)
            for copy in range(number):
                image = _noise(rng, 40, 40, level=40 + 60 * label)
                file_name = f'{name}_{copy}.JPEG'
                image.save(folder / file_name, quality=95)
                lines.append(f'{name}/{file_name} {label}')
        (root / 'meta' / f'{split}.txt').write_text('\n'.join(lines) + '\n')
    return root


def idx(values):
    """Return an array of bytes in the format of MNIST's files."""
    # Two zeros, 8 for bytes, and the number of dimensions.
    head = bytes([0, 0, 8, values.ndim])
    return head + np.array(values.shape, '>i4').tobytes() + values.tobytes()
