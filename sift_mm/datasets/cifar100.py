"""CIFAR-100 as MMPreTrain reads it: the official pickles."""

import os
import tarfile
from pathlib import Path

from sift_mm.datasets.building import DataError, scratch
from sift_mm.datasets.files import fetch_url, has_digest, reading
from sift_mm.datasets.table import DataSet, register

PAGE = 'https://www.cs.toronto.edu/~kriz/cifar.html'


def check(path: Path, md5: str) -> None:
    """Refuse a file of another hash."""
    if not has_digest(path, md5):
        raise DataError(
            f'{path} is broken or not of CIFAR-100, its MD5 is not {md5}: '
            'remove it and call this again.'
        )


def unpack(root: Path, names: list[str]) -> None:
    """Unpack files of the archive, which is fetched if it is not at hand."""
    from torchvision.datasets import CIFAR100

    archive = root / CIFAR100.filename
    with scratch(root) as work:
        if archive.is_file():
            check(archive, CIFAR100.tgz_md5)
        else:
            try:
                archive = fetch_url(CIFAR100.url, work, CIFAR100.tgz_md5)
            except DataError as error:
                raise DataError(
                    f'{error}\nGet {archive.name} (169 MB) from {PAGE}, put '
                    f'it into {root} and call this again.'
                ) from error
        print(f'unpacking {archive.name}', flush=True)
        with reading(archive), tarfile.open(archive) as source:
            source.extractall(work, filter='data')
        for name in names:
            (root / name).parent.mkdir(exist_ok=True)
            os.replace(work / name, root / name)


def prepare(root: Path) -> str:
    """Complete the data set and check it; see :class:`DataSet`."""
    from torchvision.datasets import CIFAR100

    digests = {
        f'{CIFAR100.base_folder}/{name}': md5
        for name, md5 in (
            *CIFAR100.train_list,
            *CIFAR100.test_list,
            (CIFAR100.meta['filename'], CIFAR100.meta['md5']),
        )
    }
    missing = [name for name in digests if not (root / name).is_file()]
    if missing:
        unpack(root, missing)
    for name, md5 in digests.items():
        check(root / name, md5)
    return '50,000 + 10,000 images'


register(
    DataSet(
        name='cifar100',
        title='CIFAR-100',
        task='Image Classification',
        types=('CIFAR100',),
        folder='data/cifar100',
        images=50_000,
        size=(32, 32),
        fetches_itself=True,
        prepare=prepare,
    )
)
