"""Atomic writing of files, and the lock of a work dir."""

import fcntl
import os
import re
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from sift_mm.errors import UserError

#: Lock file of a run in its work dir.
LOCK = '.lock'
#: Unfinished files of killed runs; old releases wrote no number.
_UNFINISHED = re.compile(r'(.+\.pth|last_checkpoint)(\.[0-9a-f]{16})?\.part')
_held: set[tuple[int, Path]] = set()


@contextmanager
def written_whole(path: str | Path, mode: str = 'wb') -> Iterator[IO[Any]]:
    """Open a file that replaces an old one when it is whole on the disk.

    The new file is written beside the old one, under a unique name.

    Raises:
        OSError: Error of ``open`` or ``write``.
    """
    path = Path(path)
    unfinished = path.with_name(f'{path.name}.{secrets.token_hex(8)}.part')
    try:
        with unfinished.open(mode.replace('w', 'x')) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    # The new name must be on the disk too.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Lock a folder for this process, and remove unfinished files.

    A record lock, unlike ``flock``, is not inherited by a data loader's
    workers, which may outlive this process by seconds. File systems without
    locks are not locked.

    Raises:
        UserError: If another process holds the lock, or the folder cannot be
            created.
    """
    folder = Path(folder).absolute()
    holder = os.getpid(), folder
    if holder in _held:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        descriptor = os.open(folder / LOCK, flags, 0o666)
    except OSError as error:
        raise UserError(
            f'The work dir {folder} cannot be written: {error.strerror}. '
            'Choose another one by --work-dir.'
        ) from error
    _held.add(holder)
    try:
        with open(descriptor, 'r+', errors='replace') as stream:
            _lock(stream, folder)
            remove_unfinished(folder)
            yield
    finally:
        _held.remove(holder)


def _lock(stream: IO[str], folder: Path) -> None:
    try:
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        other = stream.read(200).strip() or 'another process'
        raise UserError(
            f'Another run is at work in {folder} ({other}): wait for its '
            'end, or give this run another --work-dir.'
        ) from error
    except OSError:  # No locks on this file system.
        return
    stream.truncate(0)
    stream.write(f'process {os.getpid()} on {socket.gethostname()}\n')
    stream.flush()


def remove_unfinished(folder: Path) -> None:
    """Remove the unfinished checkpoints of killed runs."""
    for path in folder.glob('*.part'):
        if _UNFINISHED.fullmatch(path.name):
            path.unlink(missing_ok=True)
