"""What is not whole yet lies beside its place, and is renamed into it."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sift_mm.errors import Mistake

SCRATCH = '.prepare_data'
MANIFEST = 'manifest.json'


class DataError(Mistake):
    """Why the data set cannot be had, in one sentence for the user."""


@contextmanager
def scratch(root: Path, beside: bool = False) -> Iterator[Path]:
    """Give an empty folder for what is not whole yet, removed in the end.

    What a killed process left in it is removed at the start. It lies in the
    data set's folder, which may be a disk of its own, of which alone files
    can be renamed into it, or `beside` that, which is then left alone.

    Raises:
        DataError: If another process is at work in `root`.
    """
    folder = root / SCRATCH
    if beside:
        folder = root.with_name(f'{SCRATCH}-{root.name}')
    work = folder / 'work'
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / 'lock', blocking=False):
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            try:
                yield work
            finally:
                # The lock's file last: without it, another process gets in.
                shutil.rmtree(work, ignore_errors=True)
                shutil.rmtree(folder, ignore_errors=True)
    except Timeout as error:
        raise DataError(
            f'Another process prepares {root} at this moment: wait for it.'
        ) from error


def build(
    root: Path, about: Mapping[str, Any], make: Callable[[Path], None]
) -> None:
    """Build a data set unless it is there.

    It takes its place when it is whole, with a marker that holds what it was
    made from and the sizes of its files. An error of `make` leaves `root` as
    it was; a set in it that is damaged, or was made from something else, is
    replaced.

    Args:
        root: The data set's folder.
        about: What it is made from, as JSON has it.
        make: Writes the data set into an empty folder.

    Raises:
        DataError: If another process builds it, or if there are files in
            `root` that this did not write.
    """
    root = root.resolve()  # a link to another disk stays one
    manifest = _read_manifest(root, about)
    files = manifest.pop('files', {})
    if manifest == about and files.items() <= _sizes(root).items():
        return
    with scratch(root, beside=True) as work:
        _check_ours(root, about)
        made = work / 'made'
        made.mkdir()
        make(made)
        manifest = {**about, 'files': _sizes(made)}
        (made / MANIFEST).write_text(json.dumps(manifest, indent=1))
        _check_ours(root, about)  # again, as making it took a while
        if root.exists():
            os.replace(root, work / 'old')
        os.replace(made, root)


def _sizes(root: Path) -> dict[str, int]:
    """Sizes in bytes of the files in a folder, by relative path."""
    return {
        str(path.relative_to(root)): path.lstat().st_size
        for path in sorted(root.rglob('*'))
        if path.is_file() or path.is_symlink()
    }


def _read_manifest(root: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Read the marker of a set of this kind; empty if there is none."""
    try:
        manifest = json.loads((root / MANIFEST).read_text())
        return manifest if manifest.keys() == {*about, 'files'} else {}
    except (OSError, AttributeError, ValueError):
        return {}


def _check_ours(root: Path, about: Mapping[str, Any]) -> None:
    """Refuse to replace what :func:`build` did not write."""
    manifest = _read_manifest(root, about)
    ours = {MANIFEST, *manifest['files']} if manifest else set()
    others = ['.'] if root.is_file() else sorted(_sizes(root).keys() - ours)
    if others:
        raise DataError(
            f'{root / others[0]} is not known to be of a data set that this '
            'wrote: move it away or name another folder with --root.'
        )
