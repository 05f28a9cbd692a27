"""Folders and archives for the tests of what prepares data sets."""

import hashlib
import io
import tarfile
import zipfile

import numpy as np


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def snapshot(root):
    """Return the time at which each file was written."""
    return {path: path.stat().st_mtime_ns for path in root.rglob('*')}


def md5(content):
    return hashlib.md5(content).hexdigest()


def cut(path, size):
    """Cut bytes from the end, like an interrupted download."""
    path.write_bytes(path.read_bytes()[:-size])


def zip_of(archive, root, *items):
    """Zip folders and files like the official archives."""
    with zipfile.ZipFile(archive, 'w') as target:
        for item in items:
            for path in [root / item, *sorted((root / item).rglob('*'))]:
                target.write(path, path.relative_to(root))


def tar_of(contents, mode='w'):
    """Return the bytes of an archive with these files."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def idx(values):
    """Return an array of bytes in the format of MNIST's files."""
    # Two zeros, 8 for bytes, and the number of dimensions.
    head = bytes([0, 0, 8, values.ndim])
    return head + np.array(values.shape, '>i4').tobytes() + values.tobytes()


def fail_after(number, function, error=OSError):
    """Return a function that fails after some calls."""
    left = iter(range(number))

    def call(*args, **kwargs):
        if next(left, None) is None:
            raise error(28, 'No space left on device')
        return function(*args, **kwargs)

    return call
