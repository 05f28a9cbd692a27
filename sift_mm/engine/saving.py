"""Checkpoints of which a whole one is left, whatever ends the run."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import IO, Any
from unittest import mock

from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook, checkpoint_hook
from mmengine.runner import Runner

from sift_mm.errors import Mistake


@contextmanager
def written_whole(path: str | Path, mode: str = 'wb') -> Iterator[IO[Any]]:
    """A file that gets its name when all of it is on the disk.

    A file that has the name stays until then; the new one is written under
    the name with '.part' behind it.
    """
    path = Path(path)
    unfinished = path.with_name(f'{path.name}.part')
    try:
        with unfinished.open(mode) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    # The name too has to be on the disk.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class WholeFileBackend(LocalBackend):
    """MMEngine's backend of local files, which writes beside and renames.

    A full disk or a kill leaves what was there before.
    """

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes to a file; its folder is made where there is none.

        Raises:
            Mistake: If that is not possible, on a full disk say.
        """
        try:
            Path(filepath).parent.mkdir(parents=True, exist_ok=True)
            with written_whole(filepath) as stream:
                stream.write(obj)
        except OSError as error:
            raise Mistake(
                f'{filepath} could not be written: {error.strerror}. What '
                'was written before is whole: make room, and go on from that.'
            ) from error

    def put_text(
        self, obj: str, filepath: str | Path, encoding: str = 'utf-8'
    ) -> None:
        """Write a text to a file, as :meth:`put`."""
        self.put(obj.encode(encoding), filepath)


class _LateRemoval:
    """A backend of files that removes at last what it is to remove."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.due: list[tuple[Callable[[str], None], str, int]] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.backend, name)
        if name not in ('remove', 'rmtree'):
            return method
        return lambda path: self.due.append((method, path, _inode(path)))

    def catch_up(self) -> None:
        for remove, path, inode in self.due:
            # The new file may have taken the name of the old one.
            if _inode(path) == inode:
                remove(path)


def _inode(path: str) -> int:
    """Of a local file; 0 for none, as elsewhere."""
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0


def _safely(saves: Callable[..., None]) -> Callable[..., None]:
    """A method of MMEngine's hook that saves, removing at last."""

    @wraps(saves)
    def save(self: Any, *args: Any, **kwargs: Any) -> None:
        late = _LateRemoval(self.file_backend)
        with (
            mock.patch.object(self, 'file_backend', late),
            # The one file that MMEngine writes by hand.
            mock.patch.object(
                checkpoint_hook, 'open', written_whole, create=True
            ),
        ):
            saves(self, *args, **kwargs)
        late.catch_up()

    return save


class WholeCheckpointHook(CheckpointHook):
    """MMEngine's hook, which removes an old file when the new one is whole.

    It removes first, and with ``max_keep_ckpts=1`` a full disk or a kill
    leaves nothing. The file 'last_checkpoint', which it cuts and then
    writes, is replaced too.
    """

    after_train_iter = _safely(CheckpointHook.after_train_iter)
    after_train_epoch = _safely(CheckpointHook.after_train_epoch)
    after_val_epoch = _safely(CheckpointHook.after_val_epoch)


def save_whole(runner: Runner) -> None:
    """Make the checkpoint hooks of a run leave a whole file at any time."""
    for hook in runner.hooks:
        if type(hook) is CheckpointHook:
            hook.__class__ = WholeCheckpointHook


def write_whole_files() -> None:
    """Make MMEngine write local files beside their place, then rename."""
    register_backend('local', WholeFileBackend, force=True, prefixes='')
