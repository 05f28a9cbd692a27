"""What the converters share: archives, downloads, samples.

Each raises :class:`DataError` where it cannot do what it says.
"""

import gzip
import hashlib
import os
import shutil
import socket
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import TypeVar

from PIL import Image
from rich.progress import track

from sift_mm.datasets.building import DataError, scratch

Item = TypeVar('Item')

TIMEOUT = 20  # seconds without an answer after which a download is given up
SAMPLE = 50  # images of a split that are opened
# What the readers of archives raise; each has a sentence that says what.
BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
)


def check_space(root: Path, needed: int) -> None:
    """Refuse to begin what the disk of a folder cannot hold, in bytes."""
    while not root.exists():
        root = root.parent
    free = shutil.disk_usage(root).free
    if free < needed:
        raise DataError(
            f'{needed / 1e9:.1f} GB of free disk are needed in {root}, '
            f'{free / 1e9:.1f} GB are left: make room.'
        )


@contextmanager
def reading(archive: Path) -> Iterator[None]:
    """Turn what a broken archive raises into a sentence."""
    try:
        yield
    except BROKEN as error:
        raise DataError(
            f'{archive} is broken ({error}): remove it and fetch it again.'
        ) from error


def lacking(root: Path, archives: Mapping[str, str]) -> dict[str, list[str]]:
    """Find the files that are missing, and folders that are or are empty.

    Args:
        root: The data set's folder.
        archives: The archive's name of each file or folder.

    Returns:
        What is missing, by the archive that holds it.
    """
    found: dict[str, list[str]] = {}
    for item, archive in archives.items():
        path = root / item
        if not (path.is_file() or path.is_dir() and any(path.iterdir())):
            found.setdefault(archive, []).append(item)
    return found


def describe(
    todo: str,
    root: Path,
    archives: Mapping[str, str],
    details: Mapping[str, str],
) -> str:
    """Say what a data set lacks and what to get.

    Args:
        todo: Text with places for `root`, `items` and `archives`.
        root: The data set's folder.
        archives: As in :func:`lacking`.
        details: What is said of each archive.
    """
    missing = lacking(root, archives)
    return todo.format(
        root=root,
        items=', '.join(chain(*missing.values())),
        archives='\n'.join(f'  {name} {details[name]}' for name in missing),
    )


def count(images: Mapping[str, int]) -> str:
    """As '118,287 + 5,000 images'."""
    return ' + '.join(f'{number:,}' for number in images.values()) + ' images'


def unpack_zips(root: Path, archives: Mapping[str, str]) -> None:
    """Unpack what is missing and whose archive lies in the folder.

    A folder appears when it is whole. `ZipFile.extract` keeps names with
    `..` or a leading slash inside the folder that it is given. Arguments are
    those of :func:`lacking`.
    """
    for name, items in lacking(root, archives).items():
        if not (root / name).is_file():
            continue
        with (
            reading(root / name),
            zipfile.ZipFile(root / name) as archive,
            scratch(root) as work,
        ):
            members = {
                item: [
                    member
                    for member in archive.infolist()
                    if f'{member.filename}/'.startswith(f'{item}/')
                ]
                for item in items
            }
            sizes = [m.file_size for group in members.values() for m in group]
            check_space(root, sum(sizes))
            for item, group in members.items():
                if not group:
                    raise DataError(
                        f'{root / name} holds no {item}: it is another '
                        'archive, fetch the official one.'
                    )
                for member in track(group, f'unpacking {item}'):
                    archive.extract(member, work)
                (root / item).parent.mkdir(parents=True, exist_ok=True)
                os.replace(work / item, root / item)


def has_digest(path: Path, digest: str, kind: str = 'md5') -> bool:
    """Whether there is a file of this hash."""
    if not path.is_file():
        return False
    with path.open('rb') as stream:
        return hashlib.file_digest(stream, kind).hexdigest() == digest


def fetch_url(url: str, folder: Path, md5: str | None = None) -> Path:
    """Fetch a file into a folder, and check its hash if that is known.

    The folder is one of :func:`scratch`: an error leaves half a file.
    """
    from torchvision.datasets.utils import download_url

    print(f'downloading {url}', flush=True)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        download_url(url, folder, md5=md5)
    except (OSError, RuntimeError, HTTPException) as error:
        raise DataError(f'{url} could not be fetched ({error}).') from error
    finally:
        socket.setdefaulttimeout(before)
    path = folder / PurePosixPath(url).name
    # A connection that ends early is no error to what reads it.
    if path.suffix == '.zip' and not zipfile.is_zipfile(path):
        raise DataError(f'{url} came incomplete: call this again.')
    return path


def remedy(root: Path, item: str, archive: str) -> str:
    """Say what to do about a folder `item` that is not complete."""
    return (
        f'add what is missing, or put {archive} into {root}, remove '
        f'{root / item} and call this again.'
    )


def sample(items: Sequence[Item]) -> Sequence[Item]:
    """Take some, evenly spaced, the same at each call."""
    return items[:: -(-len(items) // SAMPLE) or 1]


def load_image(path: Path) -> Image.Image:
    """Read an image with all its pixels."""
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError) as error:  # the latter for a broken PNG
        raise DataError(
            f'{path} cannot be read ({error}): replace it by a whole one.'
        ) from error
    return image
