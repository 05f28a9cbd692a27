"""COCO 2017 as MMDetection reads it."""

import json
import os
from pathlib import Path
from typing import Any

from sift_mm.datasets.building import DataError, scratch
from sift_mm.datasets.files import (
    check_space,
    count,
    describe,
    fetch_url,
    lacking,
    load_image,
    remedy,
    sample,
    unpack_zips,
)
from sift_mm.datasets.table import DataSet, register

IMAGES = {'train': 118_287, 'val': 5_000}
CLASSES = 80
ANNOTATIONS = 'annotations/instances_{}2017.json'
ARCHIVES = {
    **{ANNOTATIONS.format(s): 'annotations_trainval2017.zip' for s in IMAGES},
    **{f'{split}2017': f'{split}2017.zip' for split in IMAGES},
}
SERVER = 'http://images.cocodataset.org'
MEGABYTES = {
    'annotations_trainval2017.zip': 253,
    'train2017.zip': 19_337,
    'val2017.zip': 816,
}
URLS = {
    name: f'{SERVER}/{"annotations" if "ann" in name else "zips"}/{name}'
    for name in MEGABYTES
}
TODO = """\
COCO 2017 is not complete in {root}, it lacks {items}.
Get these from https://cocodataset.org/#download
{archives}
and put them into {root} as they are; then call this again. Or let it fetch
them, with --download. Unpacked, as much again, it will be
  {root}/annotations/instances_train2017.json, instances_val2017.json
  {root}/train2017/*.jpg
  {root}/val2017/*.jpg"""


def todo(root: Path) -> str:
    """Say what to get and where to put it."""
    details = {n: f'({MEGABYTES[n]:,} MB)  {url}' for n, url in URLS.items()}
    return describe(TODO, root, ARCHIVES, details)


def fetch(root: Path) -> None:
    """Fetch the archives that are missing."""
    names = [n for n in lacking(root, ARCHIVES) if not (root / n).is_file()]
    if not names:
        return
    size = sum(MEGABYTES[name] for name in names) * 10**6
    print(f'{size / 1e9:.1f} GB are to be downloaded', flush=True)
    check_space(root, 2 * size)  # the archives and, as large, what they hold
    with scratch(root) as work:
        for name in names:
            os.replace(fetch_url(URLS[name], work), root / name)


def read_images(path: Path) -> list[dict[str, Any]]:
    """Read which images an annotation file is about."""
    print(f'reading {path}', flush=True)
    try:
        content = json.loads(path.read_bytes())
        images, classes = content['images'], content['categories']
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f'{path} is not an annotation file of COCO ({error!r}): remove '
            'it and call this again.'
        ) from error
    if len(classes) != CLASSES:
        raise DataError(
            f'{path} has {len(classes)} classes instead of {CLASSES}: it is '
            'of another data set, remove it and call this again.'
        )
    return images


def check(root: Path, split: str) -> None:
    """Check 'train' or 'val'."""
    path, folder = root / ANNOTATIONS.format(split), root / f'{split}2017'
    images = read_images(path)
    if len(images) != IMAGES[split]:
        raise DataError(
            f'{path} lists {len(images):,} images instead of '
            f'{IMAGES[split]:,}: remove it and call this again.'
        )
    there = set(os.listdir(folder))
    absent = [i['file_name'] for i in images if i['file_name'] not in there]
    if absent:
        raise DataError(
            f'{folder} lacks {len(absent):,} of {len(images):,} images, the '
            f'first is {absent[0]}: '
            f'{remedy(root, folder.name, f"{split}2017.zip")}'
        )
    for image in sample(images):
        size = load_image(folder / image['file_name']).size
        if size != (image['width'], image['height']):
            raise DataError(
                f'{folder / image["file_name"]} has {size[0]} x {size[1]} '
                f'pixels, {path} says {image["width"]} x {image["height"]}: '
                'replace it by the official one.'
            )


def prepare(root: Path, download: bool = False) -> str:
    """Complete the data set and check it; see :class:`DataSet`."""
    if download:
        try:
            fetch(root)
        except DataError as error:
            raise DataError(f'{error}\n{todo(root)}') from error
    unpack_zips(root, ARCHIVES)
    if lacking(root, ARCHIVES):
        raise DataError(todo(root))
    for split in IMAGES:
        check(root, split)
    return count(IMAGES)


register(
    DataSet(
        name='coco',
        title='COCO',
        task='Object Detection',
        types=('CocoDataset',),
        folder='data/coco',
        images=IMAGES['train'],
        path='instances_train2017',
        without_annotations=1_021,
        prepare=prepare,
        download='20 GB',
    )
)
