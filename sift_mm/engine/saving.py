"""Save checkpoints so that a whole one is left, whatever ends the run."""

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
    """Backend of local files that writes beside the old file, then renames.

    A full disk or a kill leaves what was there before.
    """

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes to a file, and make its folder.

        Raises:
            UserError: If that is not possible, on a full disk say.
        """
        try:
            Path(filepath).parent.mkdir(parents=True, exist_ok=True)
            with written_whole(filepath) as stream:
                stream.write(obj)
        except OSError as error:
            raise UserError(
                f'{filepath} could not be written: {error.strerror}. What '
                'was written before is whole: make room, and go on from that.'
            ) from error

    def put_text(
        self, obj: str, filepath: str | Path, encoding: str = 'utf-8'
    ) -> None:
        """Write a text to a file as :meth:`put` does."""
        self.put(obj.encode(encoding), filepath)


class _LateRemoval:
    """File backend that removes files when the new one is written."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.due: list[tuple[Callable[[str], None], str, int]] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.backend, name)
        if name not in ('remove', 'rmtree'):
            return method
        return lambda path: self.due.append((method, path, _inode(path)))

    def catch_up(self) -> None:
        """Remove the files that are due."""
        for remove, path, inode in self.due:
            # The new file may have taken the name of the old one.
            if _inode(path) == inode:
                remove(path)


def _inode(path: str) -> int:
    """Return the inode of a local file, 0 without one."""
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0


def _safely(saves: Callable[..., None]) -> Callable[..., None]:
    """Wrap a method that saves, so that it removes old files last."""

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
    """Checkpoint hook that removes an old file when the new one is whole.

    MMEngine's removes first: with ``max_keep_ckpts=1`` a full disk or a kill
    leaves nothing. The file 'last_checkpoint' is replaced too.
    """

    after_train_iter = _safely(CheckpointHook.after_train_iter)
    after_train_epoch = _safely(CheckpointHook.after_train_epoch)
    _save_best = _safely(CheckpointHook.after_val_epoch)

    def after_val_epoch(
        self, runner: Runner, metrics: dict[str, float] | None = None
    ) -> None:
        """Save the best checkpoint.

        Raises:
            UserError: If ``save_best`` names no metric.
        """
        for key in getattr(self, 'key_indicators', None) or ():
            if metrics and key != 'auto' and key not in metrics:
                raise UserError(
                    f'default_hooks.checkpoint: save_best={key!r} is no '
                    f'metric of this run; there are {", ".join(metrics)}.'
                )
        self._save_best(runner, metrics)


def save_whole(runner: Runner) -> None:
    """Make the checkpoint hooks of a run save as WholeCheckpointHook does."""
    for hook in runner.hooks:
        if type(hook) is CheckpointHook:
            hook.__class__ = WholeCheckpointHook


def lock_work_dir(cfg: Config) -> AbstractContextManager[None]:
    """Keep the work dir to one training, held by its first process.

    Raises:
        UserError: If another training is at work there.
    """
    rank = RANKS.get(cfg.get('launcher') or 'none', '')
    is_first = os.environ.get(rank, '0') == '0'
    return locked(cfg.work_dir) if is_first else nullcontext()


def use_safe_files() -> None:
    """Make MMEngine read checkpoints safely and write whole files.

    Runs of this package do so when they begin, for their process. Call it
    where checkpoints are read or written without a run.
    """
    use_safe_loaders()
    register_backend('local', WholeFileBackend, force=True, prefixes='')
    for key, backend in list(io.backend_instances.items()):
        if type(backend) is LocalBackend:
            del io.backend_instances[key]
