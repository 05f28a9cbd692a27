"""Fashion-MNIST as MMPreTrain reads it: IDX files, not compressed.

MMPreTrain itself only looks whether the four files exist: one that an
interrupted download left half-written would be trained on.
"""

import os
import shutil
import subprocess
from pathlib import Path

from sift_mm.datasets.building import DataError, scratch
from sift_mm.datasets.files import TIMEOUT, fetch_url, has_digest, reading
from sift_mm.datasets.table import DataSet, register

# Of the content. Those that MMPreTrain and torchvision know are of the
# official .gz files; Debian has compressed the same content anew.
MD5 = {
    'train-images-idx3-ubyte': 'f4a8712d7a061bf5bd6d2ca38dc4d50a',
    'train-labels-idx1-ubyte': '9018921c3c673c538a1fc5bad174d6f9',
    't10k-images-idx3-ubyte': '8181f5470baa50b63fa0f6fddb340f0a',
    't10k-labels-idx1-ubyte': '15d484375f8d13e6eb1aabb0c3f46965',
}
PAGE = 'https://github.com/zalandoresearch/fashion-mnist'
# Of Debian and what derives from it.
PACKAGE = 'dataset-fashion-mnist'
INSTALLED = Path('/usr/share/datasets/fashion-mnist')
APT_OPTIONS = (
    'Acquire::Retries=0',
    f'Acquire::http::Timeout={TIMEOUT}',
    f'Acquire::https::Timeout={TIMEOUT}',
)


def missing(root: Path) -> list[str]:
    """Return the names of the files that are not there."""
    return [name for name in MD5 if not (root / name).is_file()]


def check(path: Path, source: Path) -> None:
    """Refuse a file of another content; `source` is what to blame."""
    if not has_digest(path, MD5[path.name]):
        raise DataError(
            f'{source} is broken or not of Fashion-MNIST: remove it and call '
            'this again.'
        )


def unpack(folder: Path, root: Path, work: Path) -> None:
    """Unpack what the data set lacks and a folder has, by way of `work`."""
    from torchvision.datasets.utils import extract_archive

    for name in missing(root):
        packed = folder / f'{name}.gz'
        if packed.is_file():
            print(f'unpacking {packed}', flush=True)
            with reading(packed):
                extract_archive(packed, work)
            check(work / name, packed)
            os.replace(work / name, root / name)


def fetch_official(root: Path, work: Path) -> Path:
    """Fetch what is missing from the authors; returns where it is then."""
    from torchvision.datasets import FashionMNIST

    for name in missing(root):
        fetch_url(f'{FashionMNIST.mirrors[0]}{name}.gz', work)
    return work


def fetch_debian(root: Path, work: Path) -> Path:
    """Fetch Debian's package; returns where its files are then."""
    del root  # the package has all of it
    if not shutil.which('apt-get') or not shutil.which('dpkg-deb'):
        raise DataError(f'There is no apt-get to fetch {PACKAGE} with.')
    print(f'downloading the package {PACKAGE} (31 MB)', flush=True)
    options = [f'-o{option}' for option in APT_OPTIONS]
    run(work, 'apt-get', *options, 'download', PACKAGE)
    run(work, 'dpkg-deb', '-x', *(p.name for p in work.glob('*.deb')), '.')
    return work / INSTALLED.relative_to('/')


def run(folder: Path, *command: str) -> None:
    """Run a program in a folder; if it fails, tell the last that it said."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or 'no output').splitlines()[-1]
        raise DataError(f'{command[0]} failed ({last}).')


def fill(root: Path, work: Path) -> None:
    """Get what is missing from wherever it can be had, by way of `work`."""
    for folder in (root, INSTALLED):
        unpack(folder, root, work)
    for fetch in (fetch_official, fetch_debian):
        if missing(root):
            try:
                unpack(fetch(root, work), root, work)
            except DataError as error:
                print(error, flush=True)
    if missing(root):
        names = ', '.join(f'{name}.gz' for name in missing(root))
        raise DataError(
            f'Fashion-MNIST is not complete: get {names} from {PAGE}, put '
            f'them into {root} and call this again.'
        )


def prepare(root: Path) -> str:
    """Complete the data set and check it; see :class:`DataSet`."""
    if missing(root):
        with scratch(root) as work:
            fill(root, work)
    for name in MD5:
        check(root / name, root / name)
    return '60,000 + 10,000 images'


register(
    DataSet(
        name='fashion_mnist',
        title='Fashion-MNIST',
        task='Image Classification',
        types=('FashionMNIST',),
        folder='data/fashion_mnist',
        images=60_000,
        size=(28, 28),
        fetches_itself=True,
        prepare=prepare,
    )
)
