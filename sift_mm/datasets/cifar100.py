"""Prepare CIFAR-100 as MMPreTrain reads it: the official pickles."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

from torchvision.datasets import CIFAR100
from torchvision.datasets.utils import check_integrity

from sift_mm.datasets.files import (
    DataError,
    fetch_url,
    reading,
    scratch,
)

ARCHIVE = CIFAR100.filename
ARCHIVE_MD5 = CIFAR100.tgz_md5
MD5 = {
    f'{CIFAR100.base_folder}/{name}': md5
    for name, md5 in (
        *CIFAR100.train_list,
        *CIFAR100.test_list,
        (CIFAR100.meta['filename'], CIFAR100.meta['md5']),
    )
}
PAGE = 'https://www.cs.toronto.edu/~kriz/cifar.html'


def check(path: Path, md5: str) -> None:
    """Compare a file with a hash.

    Raises:
        DataError: If it is another.
    """
    if not check_integrity(path, md5):
        raise DataError(
            f'{path} is broken or not of CIFAR-100, its MD5 is not {md5}: '
            'remove it and call this again.'
        )


def fetch(work: Path, root: Path) -> Path:
    """Fetch the archive.

    Raises:
        DataError: If it cannot be had, with what to do.
    """
    try:
        return fetch_url(CIFAR100.url, work, ARCHIVE_MD5)
    except DataError as error:
        raise DataError(
            f'{error}\nGet {ARCHIVE} (169 MB) from {PAGE}, put it into {root} '
            'and call this again.'
        ) from error


def prepare(root: Path) -> str:
    """Complete the data set and check it.

    Args:
        root: Its folder.

    Returns:
        What it holds, in a few words.

    Raises:
        DataError: If it cannot be completed, or a file in it is broken.
    """
    missing = [name for name in MD5 if not (root / name).is_file()]
    if missing:
        with scratch(root) as work:
            archive = root / ARCHIVE
            if archive.is_file():
                check(archive, ARCHIVE_MD5)
            else:
                archive = fetch(work, root)
            print(f'unpacking {ARCHIVE}', flush=True)
            with reading(archive), tarfile.open(archive) as source:
                source.extractall(work, filter='data')
            for name in missing:
                (root / name).parent.mkdir(exist_ok=True)
                os.replace(work / name, root / name)
    for name, md5 in MD5.items():
        check(root / name, md5)
    return '50,000 + 10,000 images'
