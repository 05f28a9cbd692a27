"""Folders and archives for the tests of what prepares data sets."""

import hashlib
import io
import tarfile
import zipfile

import numpy as np


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def snapshot(root):
    """When each file was written."""
    return {path: path.stat().st_mtime_ns for path in root.rglob('*')}


def md5(content):
    return hashlib.md5(content).hexdigest()


def cut(path, size):
    """Takes bytes from the end, as a download that stopped does."""
    path.write_bytes(path.read_bytes()[:-size])


def zip_of(archive, root, *items):
    """Zips folders and files as the official archives have them."""
    with zipfile.ZipFile(archive, 'w') as target:
        for item in items:
            for path in [root / item, *sorted((root / item).rglob('*'))]:
                target.write(path, path.relative_to(root))


def tar_of(contents, mode='w'):
    """An archive of files, by their names, as bytes."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def idx(values):
    """An array of bytes as MNIST's files have it."""
    # Two zeros, 8 for bytes, and the number of dimensions.
    head = bytes([0, 0, 8, values.ndim])
    return head + np.array(values.shape, '>i4').tobytes() + values.tobytes()


def fail_after(number, function, error=OSError):
    """A function that fails when it was called so often."""
    left = iter(range(number))

    def call(*args, **kwargs):
        if next(left, None) is None:
            raise error(28, 'No space left on device')
        return function(*args, **kwargs)

    return call
