"""Fetch Fashion-MNIST as MMPreTrain reads it: IDX files, not compressed.

Sources are, in this order, `.gz` files in the folder, the authors' server and
Debian's package. Digests are checked: MMPreTrain only checks that the files
exist, and would train on an incomplete one.
"""

import gzip
import hashlib
import os
import subprocess
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from urllib.request import urlopen

from sift_mm.cli.entry import Parser, entry_point
from sift_mm.errors import UserError

# Digests of the content, because Debian compresses it again.
MD5 = {
    'train-images-idx3-ubyte': 'f4a8712d7a061bf5bd6d2ca38dc4d50a',
    'train-labels-idx1-ubyte': '9018921c3c673c538a1fc5bad174d6f9',
    't10k-images-idx3-ubyte': '8181f5470baa50b63fa0f6fddb340f0a',
    't10k-labels-idx1-ubyte': '15d484375f8d13e6eb1aabb0c3f46965',
}
SERVER = 'http://fashion-mnist.s3-website.eu-central-1.amazonaws.com'
PAGE = 'https://github.com/zalandoresearch/fashion-mnist'
PACKAGE = 'dataset-fashion-mnist'


def has_content(path: Path, name: str) -> bool:
    """Return whether a file holds the part of the data set of this name."""
    if not path.is_file():
        return False
    return hashlib.md5(path.read_bytes()).hexdigest() == MD5[name]


def find_archive(name: str, root: Path, work: Path) -> Path:
    """Return the archive that lies in the data set's folder."""
    return root / f'{name}.gz'


def fetch_official(name: str, root: Path, work: Path) -> Path:
    """Fetch an archive from the authors' server."""
    with urlopen(f'{SERVER}/{name}.gz', timeout=20) as response:
        (work / f'{name}.gz').write_bytes(response.read())
    return work / f'{name}.gz'


def fetch_debian(name: str, root: Path, work: Path) -> Path:
    """Fetch Debian's package, once for all parts."""
    folder = work / 'usr/share/datasets/fashion-mnist'
    if not folder.exists():
        options = ['-oAcquire::Retries=0', '-oAcquire::http::Timeout=20']
        for command in (
            ['apt-get', *options, 'download', PACKAGE],
            ['sh', '-c', 'dpkg-deb -x *.deb .'],
        ):
            subprocess.run(command, cwd=work, check=True, capture_output=True)
    return folder / f'{name}.gz'


SOURCES = {
    'the folder': find_archive,
    SERVER: fetch_official,
    f'the package {PACKAGE}': fetch_debian,
}


def prepare(root: Path) -> None:
    """Fetch and check the parts that are missing.

    Raises:
        UserError: If a part cannot be had, or has another content.
    """
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root) as folder:
        work = Path(folder)
        for place, source in SOURCES.items():
            for name in [n for n in MD5 if not has_content(root / n, n)]:
                try:
                    archive = source(name, root, work)
                    content = gzip.decompress(archive.read_bytes())
                except (OSError, EOFError, zlib.error) as error:
                    print(f'not in {place}: {error}', flush=True)
                    break
                except subprocess.CalledProcessError as error:
                    print(f'not in {place}: {error.stderr.decode()[-200:]}')
                    break
                (work / name).write_bytes(content)
                if has_content(work / name, name):
                    os.replace(work / name, root / name)  # whole or not
    missing = [n for n in MD5 if not has_content(root / n, n)]
    if missing:
        names = ', '.join(f'{name}.gz' for name in missing)
        raise UserError(
            f'Fashion-MNIST is not complete: get {names} from {PAGE}, put '
            f'them into {root} and call this again.'
        )


@entry_point
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument('--root', type=Path, default='data/fashion_mnist')
    root = parser.parse_args(argv).root
    prepare(root)
    print(f'{root} is complete: 60,000 + 10,000 images')


if __name__ == '__main__':
    main()
