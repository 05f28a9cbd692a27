"""ImageNet (ILSVRC 2012) as MMPreTrain reads it: a folder a class."""

import os
import tarfile
from glob import glob
from importlib.util import find_spec
from pathlib import Path

from rich.progress import track

from sift_mm.datasets.building import DataError, scratch
from sift_mm.datasets.files import (
    check_space,
    count,
    has_digest,
    lacking,
    load_image,
    reading,
    remedy,
    sample,
)
from sift_mm.datasets.table import DataSet, register

IMAGES = {'train': 1_281_167, 'val': 50_000}
CLASSES = 1_000
SIZES = {'train': '138 GB', 'val': '6.3 GB', 'devkit': '2.5 MB'}
PAGE = 'https://image-net.org/download-images'
TODO = f"""\
ImageNet is not complete in {{root}}, it lacks {{splits}}.
Register at {PAGE} and get of ILSVRC 2012
{{archives}}
Put them into {{root}} as they are, and call this again. Unpacked, it will be
  {{root}}/train/WNID/*.JPEG
  {{root}}/val/WNID/*.JPEG
where WNID stands for 1,000 folders such as n01440764."""


def archive_of(root: Path, part: str) -> Path:
    """Return where the archive of 'train', 'val' or 'devkit' would lie."""
    from torchvision.datasets.imagenet import ARCHIVE_META

    return root / ARCHIVE_META[part][0]


def check_archive(root: Path, part: str) -> Path:
    """Give an archive if it is the official one, by its hash."""
    from torchvision.datasets.imagenet import ARCHIVE_META

    archive, md5 = archive_of(root, part), ARCHIVE_META[part][1]
    print(f'checking {archive} ({SIZES[part]})', flush=True)
    if not has_digest(archive, md5):
        raise DataError(
            f'{archive} is missing, broken or another file, its MD5 is not '
            f'{md5}: get it from {PAGE}.'
        )
    return archive


def unpack(root: Path, split: str) -> None:
    """Unpack 'train' or 'val', a folder a class.

    The former is an archive of one archive a class. They are read one within
    the other; torchvision's own function needs the space twice.
    """
    archive = check_archive(root, split)
    classes = val_classes(root) if split == 'val' else []
    check_space(root, archive.stat().st_size)
    with (
        scratch(root) as work,
        reading(archive),
        tarfile.open(archive) as source,
    ):
        folder = work / split
        if split == 'val':
            print('unpacking val', flush=True)
            source.extractall(folder, filter='data')
            sort_val(folder, classes)
        else:
            for member in track(source.getmembers(), 'unpacking train'):
                with tarfile.open(fileobj=source.extractfile(member)) as one:
                    one.extractall(
                        folder / Path(member.name).stem, filter='data'
                    )
        os.replace(folder, root / split)


def val_classes(root: Path) -> list[str]:
    """Read the folder of each validation image, by number, from the kit."""
    from torchvision.datasets.imagenet import (
        load_meta_file,
        parse_devkit_archive,
    )

    archive = check_archive(root, 'devkit')
    if find_spec('scipy') is None:
        raise DataError(
            f'scipy is needed to read {archive.name}: install it with '
            '`pip install scipy`.'
        )
    with scratch(root) as work:
        parse_devkit_archive(work, str(archive.resolve()))
        return load_meta_file(work)[1]


def flat_images(folder: Path) -> list[Path]:
    """List the validation images that lie in no class's folder."""
    return sorted(folder.glob('ILSVRC2012_val_*.JPEG'))


def sort_val(folder: Path, classes: list[str]) -> None:
    """Move validation images into the folders of their classes.

    Each by its own number, from 1, in `classes`: what an interrupted call has
    left undone is done by the next one.
    """
    for path in flat_images(folder):
        number = path.stem.rpartition('_')[2]
        if not number.isdecimal() or not 1 <= int(number) <= len(classes):
            raise DataError(
                f'{path} is none of the {len(classes):,} validation images: '
                'remove it and call this again.'
            )
        target = folder / classes[int(number) - 1]
        target.mkdir(exist_ok=True)
        os.replace(path, target / path.name)


def fill(root: Path) -> None:
    """Unpack and sort what is at hand."""
    missing = [*lacking(root, {split: split for split in IMAGES})]
    unsorted = not listed(root, 'val') and flat_images(root / 'val')
    needed = [*missing, *(['devkit'] if 'val' in missing or unsorted else [])]
    absent = [part for part in needed if not archive_of(root, part).is_file()]
    if absent:
        raise DataError(
            TODO.format(
                root=root,
                splits=', '.join(missing)
                or 'the classes of the images in val',
                archives='\n'.join(
                    f'  {archive_of(root, part).name} ({SIZES[part]})'
                    for part in absent
                ),
            )
        )
    if unsorted:
        sort_val(root / 'val', val_classes(root))
    for split in missing:
        unpack(root, split)


def listed(root: Path, split: str) -> dict[str, int]:
    """Read the class of each image, by its path, from MMPreTrain's own list.

    Empty without one. It goes before the folders: with it, images may lie in
    any of them.
    """
    path = root / 'meta' / f'{split}.txt'
    if not path.is_file():
        return {}
    pairs = [line.rsplit(maxsplit=1) for line in path.read_text().splitlines()]
    try:
        return {name: int(label) for name, label in pairs}
    except ValueError as error:
        raise DataError(
            f'{path} should have the path and the class of an image on each '
            'line: remove it, unless the folders do not tell the classes.'
        ) from error


def check(root: Path, split: str) -> set[str]:
    """Check 'train' or 'val'; returns the folders of classes, if they count.

    They do not where a list has the classes.
    """
    folder = root / split
    print(f'listing {folder}', flush=True)
    found = set(
        glob('**/*.JPEG', root_dir=folder, recursive=True, include_hidden=True)
    )
    labels = listed(root, split)
    absent = sorted(labels.keys() - found)
    if absent:
        raise DataError(
            f'{folder} lacks {len(absent):,} of the images in '
            f'{root / "meta" / split}.txt, the first is {absent[0]}: put them '
            'there.'
        )
    names = sorted(labels or (name for name in found if '/' in name))
    folders = {name.partition('/')[0] for name in names}
    classes = len(set(labels.values()) or folders)
    if (len(names), classes) != (IMAGES[split], CLASSES):
        raise DataError(
            f'{folder} holds {len(names):,} images of {classes:,} classes '
            f'instead of {IMAGES[split]:,} of {CLASSES:,}: '
            f'{remedy(root, split, archive_of(root, split).name)}'
        )
    for name in sample(names):
        load_image(folder / name)
    return set() if labels else folders


def prepare(root: Path) -> str:
    """Complete the data set and check it; see :class:`DataSet`."""
    fill(root)
    train, val = (check(root, split) for split in IMAGES)
    other = sorted(train ^ val)
    if train and val and other:
        # The place among the sorted names is the class's number.
        raise DataError(
            f'{root}/train and {root}/val have different classes, {other[0]} '
            'is in one of them only: rename or remove it.'
        )
    return count(IMAGES)


register(
    DataSet(
        name='imagenet',
        title='ImageNet-1k',
        task='Image Classification',
        types=('ImageNet',),
        folder='data/imagenet',
        images=IMAGES['train'],
        prepare=prepare,
    )
)
