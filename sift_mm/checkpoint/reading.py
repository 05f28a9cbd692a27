"""Reading of checkpoints: undamaged files of plain data that run no code."""

import os
import pickle
import re
import stat
import struct
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import wraps
from pathlib import Path
from typing import IO, Any
from unittest import mock

import torch
from torch import Tensor

from sift_mm.checkpoint.compact import expand
from sift_mm.checkpoint.state import (
    CHECKPOINT_KEY,
    check_finite,
    mask_training,
    with_context,
)
from sift_mm.checkpoint.unpickling import plain_globals, resolve
from sift_mm.errors import UserError

#: PyTorch's variable that allows files to run code.
TRUST = 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'
#: First bytes of files that torch.save writes since PyTorch 1.6.
_ZIP = b'PK\x03\x04'
#: Checkpoint that was read for a check, by identity of the file.
_ahead: dict[tuple[int, ...], dict[str, Any]] = {}


class _Damaged(Exception):
    """Error of a zip member with a wrong checksum."""


def read(
    path: str | Path, map_location: Any = 'cpu', keep: bool = False
) -> dict[str, Any]:
    """Read a local checkpoint, and expand a compact one.

    Args:
        path: Name of the file; ``~`` is the home folder.
        map_location: Device of the tensors, as in ``torch.load``.
        keep: True to keep the checkpoint for the next call with this file, as
            after a check before a run. The caller must not change it.

    Returns:
        dict: Checkpoint, or weights by name.

    Raises:
        UserError: If the file does not exist, is no checkpoint, is damaged, or
            would run code.
    """
    path = os.path.expanduser(path)
    with explained(path), _open(path) as stream:
        file = os.fstat(stream.fileno())
        identity = (file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns)
        kept = _ahead.pop(identity, None)
        if kept is None or str(map_location) not in ('cpu', 'None'):
            kept = with_weights(load_plain(stream, map_location), path)
    _ahead.clear()
    if keep:
        _ahead[identity] = kept
    return kept


def _open(path: str) -> IO[bytes]:
    """Open a regular file; pipes and devices may never end."""
    if not stat.S_ISREG(os.stat(path).st_mode) and not os.path.isdir(path):
        raise ValueError('it is no ordinary file')
    return open(path, 'rb')


def load_compact(path: str | Path) -> dict[str, Tensor]:
    """Return the ``state_dict`` of a compact file or any other checkpoint.

    Returns:
        dict: Dense tensors by name, for unmodified libraries.

    Raises:
        ValueError: As in :func:`read`.
    """
    checkpoint = read(path)
    if 'state_dict' not in checkpoint:
        raise UserError(f'{path} is no checkpoint: it has no state_dict.')
    return checkpoint['state_dict']


def masks_of(path: str | Path) -> dict[str, Tensor]:
    """Return the masks of a full, compact or published checkpoint.

    Returns:
        dict: Bool tensors on the CPU by parameter name.

    Raises:
        UserError: As in :func:`read`, or if the checkpoint has no masks.
    """
    return read_masked(path)[1]['masks']


def read_masked(
    path: str | Path,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a checkpoint with masks.

    Returns:
        tuple: Checkpoint, and its mask training.

    Raises:
        UserError: As in :func:`read`, or if the checkpoint has no masks.
    """
    checkpoint = load(os.fspath(path))
    with with_context(path):
        training = mask_training(checkpoint)
    if training is None or not training['masks']:
        raise UserError(
            f'{path} has no masks: SparseTrainingHook saves them under '
            f'{CHECKPOINT_KEY!r}, and the network of this checkpoint was '
            'trained without it.'
        )
    return checkpoint, training


def load(path: str, map_location: Any = 'cpu') -> dict[str, Any]:
    """Load a checkpoint from a local file, or from an address by MMEngine.

    Raises:
        UserError: As in :func:`read`.
    """
    if not is_address(path):
        return read(path, map_location)
    from mmengine.runner import CheckpointLoader

    return _checked(CheckpointLoader._get_checkpoint_loader(path))(
        path, map_location
    )


def load_pretrained(config: Mapping[str, Any]) -> dict[str, Any]:
    """Load the checkpoint of an ``init_cfg``.

    Weights without a checkpoint are put under the key ``state_dict``.

    Raises:
        UserError: If the file cannot be read, or a weight is NaN or infinite.
    """
    checkpoint = load(config['checkpoint'])
    if 'state_dict' not in checkpoint:
        checkpoint = {'state_dict': checkpoint}
    with with_context(config['checkpoint']):
        check_finite(checkpoint['state_dict'])
    return checkpoint


def is_address(path: str) -> bool:
    """Return True for a path that MMEngine downloads."""
    return '://' in path


def is_trusted() -> bool:
    """Return True if PyTorch's variable allows files to run code."""
    return os.environ.get(TRUST, '0') in ('1', 'y', 'yes', 'true')


def use_safe_loaders() -> None:
    """Make MMEngine's loaders use :func:`read` in this process.

    MMEngine's loaders run a file's code after a warning.
    """
    from mmengine.runner import CheckpointLoader

    for prefix, loader in list(CheckpointLoader._schemes.items()):
        if loader.__module__.startswith('mmengine'):
            CheckpointLoader.register_scheme(
                prefix,
                loader=_checked(loader) if prefix else load_from_local,
                force=True,
            )


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """Load a local file; MMEngine logs the name of this function."""
    return read(filename, map_location)


def _checked(loader: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a loader that downloads a file and calls ``torch.load``."""

    @wraps(loader)
    def checked(filename: str, *args: Any, **kwargs: Any) -> Any:
        with explained(filename):
            with mock.patch.object(torch, 'load', load_plain):
                checkpoint = loader(filename, *args, **kwargs)
            return with_weights(checkpoint, filename)

    return checked


@contextmanager
def explained(path: str) -> Iterator[None]:
    """Replace any error of reading by an explanation in one sentence.

    Raises:
        UserError: With the path or address, in place of any error.
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        if not path:
            raise UserError(
                "The name of the checkpoint to load is '': give the name of a "
                'file.'
            ) from error
        raise UserError(
            f'There is no checkpoint {os.path.abspath(path)}.'
        ) from error
    except _Damaged as error:
        raise UserError(
            f"{path} is damaged: the checksum of '{error}' in it is wrong. "
            'Take another copy of it.'
        ) from error
    # Damaged bytes raise errors of any type.
    except Exception as error:
        raise UserError(_why(path, error)) from error


def load_plain(file: Any, map_location: Any = None, **_: Any) -> Any:
    """Load plain data in place of ``torch.load``, from a file or stream.

    Checks and reading share one open file, which nobody can replace in
    between.

    Raises:
        Exception: Error of any type, if the file is no checkpoint.
    """
    is_name = isinstance(file, (str, os.PathLike))
    with open(file, 'rb') if is_name else nullcontext(file) as stream:
        size = _check_bytes(stream)
        trusted = is_trusted()
        with nullcontext() if trusted else plain_globals():
            loaded = torch.serialization.load(
                stream, map_location, weights_only=not trusted
            )
    return loaded if trusted else resolve(loaded, size)


def with_weights(checkpoint: Any, path: str) -> dict[str, Any]:
    """Expand a checkpoint, and check its weights and digest.

    Raises:
        UserError: If it has no tensors by name, or a damaged mask training.
    """
    checkpoint = expand(checkpoint, path)
    is_named = isinstance(checkpoint, Mapping)
    if is_named and isinstance(checkpoint.get('meta'), dict):
        # MMEngine would run this text on resume, for configs before 2022.
        checkpoint['meta'].pop('config', None)
    weights = checkpoint.get('state_dict', checkpoint) if is_named else None
    if not isinstance(weights, Mapping) or not any(
        isinstance(value, Tensor) for value in weights.values()
    ):
        raise UserError(
            f'{path} is no checkpoint: it holds no weights by name, neither '
            'under state_dict nor without it.'
        )
    foreign = [
        name
        for name, value in weights.items()
        if not isinstance(name, str)
        or not (isinstance(value, Tensor) or name.endswith('_extra_state'))
    ]
    if foreign and weights is not checkpoint:
        raise UserError(
            f'{path} is no checkpoint: {foreign[0]!r} in its state_dict is '
            'no tensor, or has no name.'
        )
    if CHECKPOINT_KEY in checkpoint:
        with with_context(path):
            mask_training(checkpoint)
    return checkpoint


def _check_bytes(stream: IO[bytes]) -> int:
    """Check the zip archive, which torch.load does not, before reading it.

    Returns:
        int: Size of the file in bytes; its position is the start again.

    Raises:
        ValueError: If a member is compressed, duplicate or damaged.
    """
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    if stream.read(len(_ZIP)) == _ZIP:
        with zipfile.ZipFile(stream) as file:
            _check_directory(stream, file, size)
            changed = file.testzip()
        if changed is not None:
            raise _Damaged(changed)
    stream.seek(0)
    return size


def _check_directory(
    stream: IO[bytes], file: zipfile.ZipFile, size: int
) -> None:
    """Check that PyTorch will read the members that were checked."""
    members = file.infolist()
    # PyTorch's reader ignores case.
    names = Counter(member.filename.lower() for member in members)
    if any(name.endswith('/constants.pkl') for name in names):
        raise ValueError('TorchScript archives hold programs')
    for member in members:
        if names[member.filename.lower()] > 1:
            raise ValueError(f'it has {member.filename!r} twice')
        if (
            member.compress_type != zipfile.ZIP_STORED
            or member.compress_size != member.file_size
        ):
            raise ValueError(
                f'{member.filename!r} in it is compressed, and torch.save '
                'compresses nothing'
            )
    if sum(member.file_size for member in members) > size:
        raise ValueError('its members overlap')
    # With bytes after a directory, two readers may find different ones.
    stream.seek(max(size - 98, 0))
    end = stream.read().rjust(98, b'\0')
    (start,) = struct.unpack('<L', end[-6:-2])
    if end[-42:-38] == b'PK\x06\x07':  # Zip64, for files above 4 GiB.
        (start,) = struct.unpack('<Q', end[48:56])
        (record,) = struct.unpack('<Q', end[-34:-26])
    else:
        record = size - 98
    if (
        end[-22:-18] != b'PK\x05\x06'
        or end[-2:] != b'\0\0'
        or (start, record) != (file.start_dir, size - 98)
    ):
        raise ValueError('its directory is not at its end')


def _why(path: str, error: Exception) -> str:
    """Explain in a sentence why a file could not be read."""
    wanted = re.search(r'GLOBAL (\S+) w', str(error))
    if wanted:
        return (
            f'{path} is not loaded: it contains {wanted[1]}, which is not '
            'plain data and may run code. If you trust the author of the '
            f'file, set the environment variable {TRUST}=1.'
        )
    # PyTorch's advice follows the first sentence.
    reason = re.split(r'\. |\n', str(error).strip())[0].rstrip('.')
    if isinstance(error, OSError):
        return f'{path} cannot be read: {reason}.'
    # A key of the unpickler's table, say, is no reason.
    if isinstance(error, pickle.UnpicklingError) or ' ' not in reason:
        reason = 'it is no pickle of tensors'
    return f'{path} is no checkpoint, or is damaged: {reason}.'
