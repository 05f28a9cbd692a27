"""Cityscapes as MMSegmentation reads it: polygons become labels.

The official package `cityscapesscripts` draws them, as in MMSegmentation's
own converter; here an image that exists is whole, and is not drawn again.
"""

import io
import os
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from rich.progress import track

from sift_mm.datasets.building import DataError, scratch
from sift_mm.datasets.files import (
    count,
    describe,
    lacking,
    load_image,
    remedy,
    sample,
    unpack_zips,
)
from sift_mm.datasets.table import DataSet, register

IMAGES = {'train': 2_975, 'val': 500}
ARCHIVES = {
    f'{folder}/{split}': f'{folder}_trainvaltest.zip'
    for folder in ('leftImg8bit', 'gtFine')
    for split in IMAGES
}
CLASSES = 19
IGNORED = 255
IMAGE = '_leftImg8bit.png'
POLYGONS = '_gtFine_polygons.json'
LABELS = '_gtFine_labelTrainIds.png'
TODO = f"""\
Cityscapes is not complete in {{root}}, it lacks {{items}}.
Register at https://www.cityscapes-dataset.com/register/ and get these from
https://www.cityscapes-dataset.com/downloads/
{{archives}}
Put them into {{root}} as they are, and call this again. Unpacked, it will be
  {{root}}/leftImg8bit/{{{{train,val}}}}/CITY/*{IMAGE}
  {{root}}/gtFine/{{{{train,val}}}}/CITY/*{POLYGONS}"""
SIZES = {
    'leftImg8bit_trainvaltest.zip': '(11 GB)',
    'gtFine_trainvaltest.zip': '(241 MB)',
}


def stems(folder: Path, suffix: str) -> set[str]:
    """List the files of all cities: city and name, without the suffix."""
    return {
        f'{path.parent.name}/{path.name.removesuffix(suffix)}'
        for path in folder.glob(f'*/*{suffix}')
    }


def draw(stem: str, folder: Path, work: Path) -> str:
    """Draw the labels of an image; returns what is wrong with its polygons.

    Args:
        stem: Its city and name.
        folder: That of the cities.
        work: For what is not whole yet.
    """
    from cityscapesscripts.preparation.json2labelImg import json2labelImg

    polygons = folder / f'{stem}{POLYGONS}'
    labels = work / f'{polygons.stem}.png'
    said = io.StringIO()
    try:
        with redirect_stdout(said):
            json2labelImg(str(polygons), str(labels), 'trainIds')
    # It exits on a label that it does not know.
    except (SystemExit, LookupError, TypeError, ValueError) as error:
        why = (said.getvalue().splitlines() or [repr(error)])[0]
        return (
            f'{polygons} cannot be converted ({why}): replace it by the '
            'official one.'
        )
    os.replace(labels, folder / f'{stem}{LABELS}')
    return ''


def convert(root: Path, split: str, names: list[str]) -> None:
    """Draw labels, in as many processes as there are cores."""
    if find_spec('cityscapesscripts') is None:
        raise DataError(
            'cityscapesscripts is needed to draw the labels: install it with '
            '`pip install cityscapesscripts`.'
        )
    cores = len(os.sched_getaffinity(0))
    with scratch(root) as work, ProcessPoolExecutor(cores) as pool:
        drawn = pool.map(
            partial(draw, folder=root / 'gtFine' / split, work=work),
            names,
            chunksize=4,
        )
        wrong = list(track(drawn, f'drawing labels of {split}', len(names)))
    if any(wrong):
        raise DataError('\n'.join(filter(None, wrong)))


def check_sample(root: Path, split: str, names: list[str]) -> None:
    """Open some images, and see whether their labels fit."""
    for stem in sample(names):
        image = load_image(root / 'leftImg8bit' / split / f'{stem}{IMAGE}')
        path = root / 'gtFine' / split / f'{stem}{LABELS}'
        labels = load_image(path)
        if labels.size != image.size:
            raise DataError(
                f'{path} has {labels.size[0]} x {labels.size[1]} pixels, its '
                f'image {image.size[0]} x {image.size[1]}: remove it and '
                'call this again.'
            )
        values = np.unique(np.asarray(labels)).tolist()
        wrong = [v for v in values if v >= CLASSES and v != IGNORED]
        if labels.mode != 'L' or wrong:
            raise DataError(
                f'{path} holds {wrong or labels.mode} besides the classes 0 '
                f'to {CLASSES - 1} and {IGNORED}: remove it and call this '
                'again.'
            )


def check(root: Path, split: str) -> None:
    """Complete and check 'train' or 'val'."""
    item = f'leftImg8bit/{split}'
    images = stems(root / item, IMAGE)
    if len(images) != IMAGES[split]:
        raise DataError(
            f'{root / item} holds {len(images):,} images *{IMAGE} instead of '
            f'{IMAGES[split]:,}: {remedy(root, item, ARCHIVES[item])}'
        )
    item = f'gtFine/{split}'
    undrawn = images - stems(root / item, LABELS)
    absent = sorted(undrawn - stems(root / item, POLYGONS))
    if absent:
        raise DataError(
            f'{root / item} lacks the polygons of {len(absent):,} images, the '
            f'first is {absent[0]}{POLYGONS}: '
            f'{remedy(root, item, ARCHIVES[item])}'
        )
    if undrawn:
        convert(root, split, sorted(undrawn))
    check_sample(root, split, sorted(images))


def prepare(root: Path) -> str:
    """Complete the data set and check it; see :class:`DataSet`."""
    unpack_zips(root, ARCHIVES)
    if lacking(root, ARCHIVES):
        raise DataError(describe(TODO, root, ARCHIVES, SIZES))
    for split in IMAGES:
        check(root, split)
    return count(IMAGES)


register(
    DataSet(
        name='cityscapes',
        title='Cityscapes',
        task='Semantic Segmentation',
        types=('CityscapesDataset',),
        folder='data/cityscapes',
        images=IMAGES['train'],
        path='leftImg8bit/train',
        contents=(
            'leftImg8bit/ and gtFine/ of Cityscapes (the latter with '
            f'*{LABELS})'
        ),
        prepare=prepare,
    )
)
