"""Crash-safe saving: an interrupted run always leaves a whole checkpoint."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from pathlib import Path
from typing import Any
from unittest import mock

from mmengine.config import Config
from mmengine.fileio import LocalBackend, io, register_backend
from mmengine.hooks import CheckpointHook, checkpoint_hook
from mmengine.runner import Runner

from sift_mm.checkpoint.reading import use_safe_loaders
from sift_mm.checkpoint.writing import locked, written_whole
from sift_mm.errors import UserError

#: Environment variable of a process's rank, by launcher.
RANKS = {
    'pytorch': 'RANK',
    'slurm': 'SLURM_PROCID',
    'mpi': 'OMPI_COMM_WORLD_RANK',
}


class WholeFileBackend(LocalBackend):
    """Backend of local files that writes a new file, then renames it.

    A full disk or a kill leaves the old file.
    """

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes to a file, and create its folder.

        Raises:
            UserError: If writing fails, such as on a full disk.
        """
        try:
            Path(filepath).parent.mkdir(parents=True, exist_ok=True)
            with written_whole(filepath) as stream:
                stream.write(obj)
        except OSError as error:
            raise UserError(
                f'{filepath} could not be written: {error.strerror}. Earlier '
                'files are whole: make room, and resume from them.'
            ) from error

    def put_text(
        self, obj: str, filepath: str | Path, encoding: str = 'utf-8'
    ) -> None:
        """Write a text to a file, like :meth:`put`."""
        self.put(obj.encode(encoding), filepath)


class _LateRemoval:
    """File backend that deletes old files after the new one is written."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.due: list[tuple[Callable[[str], None], str, int]] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.backend, name)
        if name not in ('remove', 'rmtree'):
            return method
        return lambda path: self.due.append((method, path, _inode(path)))

    def catch_up(self) -> None:
        """Delete the files that are due."""
        for remove, path, inode in self.due:
            # The new file may have the name of the old one.
            if _inode(path) == inode:
                remove(path)


def _inode(path: str) -> int:
    """Return the inode of a local file, 0 without one."""
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0


def _safely(saves: Callable[..., None]) -> Callable[..., None]:
    """Wrap a method that saves, so that it deletes old files last."""

    @wraps(saves)
    def save(self: Any, *args: Any, **kwargs: Any) -> None:
        late = _LateRemoval(self.file_backend)
        with (
            mock.patch.object(self, 'file_backend', late),
            # MMEngine writes last_checkpoint without its backend.
            mock.patch.object(
                checkpoint_hook, 'open', written_whole, create=True
            ),
        ):
            saves(self, *args, **kwargs)
        late.catch_up()

    return save


class WholeCheckpointHook(CheckpointHook):
    """Checkpoint hook that deletes an old file after the new one is whole.

    MMEngine's hook deletes first: with ``max_keep_ckpts=1`` a full disk or a
    kill leaves nothing. The file 'last_checkpoint' is replaced safely too.
    """

    after_train_iter = _safely(CheckpointHook.after_train_iter)
    after_train_epoch = _safely(CheckpointHook.after_train_epoch)
    after_val_epoch = _safely(CheckpointHook.after_val_epoch)


def save_whole(runner: Runner) -> None:
    """Turn the checkpoint hooks of a run into WholeCheckpointHooks."""
    for hook in runner.hooks:
        if type(hook) is CheckpointHook:
            hook.__class__ = WholeCheckpointHook


def lock_work_dir(cfg: Config) -> AbstractContextManager[None]:
    """Lock the work dir for one training, by its first process.

    Raises:
        UserError: If another training uses the work dir.
    """
    rank = RANKS.get(cfg.get('launcher') or 'none', '')
    is_first = os.environ.get(rank, '0') == '0'
    return locked(cfg.work_dir) if is_first else nullcontext()


def use_safe_files() -> None:
    """Make MMEngine read checkpoints safely and write whole files.

    Runs with SparseTrainingHook call this. Call it in other processes that
    read or write checkpoints.
    """
    use_safe_loaders()
    register_backend('local', WholeFileBackend, force=True, prefixes='')
    for key, backend in list(io.backend_instances.items()):
        if type(backend) is LocalBackend:
            del io.backend_instances[key]
