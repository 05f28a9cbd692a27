"""Reads checkpoints: whole files alone, and nothing of them is run."""

import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sift_mm.compact import expand
from sift_mm.errors import Mistake

# PyTorch's own variable, with which it loads what may run code.
TRUST = 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'
# What every file begins with that torch.save writes since PyTorch 1.6.
_ZIP = b'PK\x03\x04'


def read(path: str | Path, map_location: Any = 'cpu') -> dict[str, Any]:
    """Read a local checkpoint; one that is compact is expanded.

    Returns:
        dict: The checkpoint, or weights by name alone.

    Raises:
        Mistake: If there is no such file, if it is no checkpoint, is cut or
            has changed since it was written, or wants to run code.
    """
    path = os.path.expanduser(path)
    with safely(path):
        _check_bytes(path)
        checkpoint = torch.load(
            path, map_location=map_location, weights_only=not is_trusted()
        )
    return with_weights(checkpoint, path)


def load_compact(path: str | Path) -> dict[str, Tensor]:
    """The ``state_dict`` of a compact file, or of any other checkpoint.

    Returns:
        dict: Dense tensors by name, as the unmodified libraries load them.

    Raises:
        ValueError: As of :func:`read`.
    """
    checkpoint = read(path)
    if 'state_dict' not in checkpoint:
        raise Mistake(f'{path} is no checkpoint: it has no state_dict.')
    return checkpoint['state_dict']


@contextmanager
def safely(path: str) -> Iterator[None]:
    """Let ``torch.load`` build what a checkpoint of MMEngine holds.

    Raises:
        Mistake: In place of any error, with the path or address.
    """
    try:
        with torch.serialization.safe_globals(_not_yet_allowed()):
            yield
    except Mistake:
        raise
    except FileNotFoundError as error:
        if not path:
            raise Mistake(
                "A checkpoint is to be loaded, and its name is '': a place "
                'that is left for a file of your own.'
            ) from error
        raise Mistake(
            f'There is no checkpoint {os.path.abspath(path)}.'
        ) from error
    # Bytes that are not what they should be raise errors of any kind.
    except Exception as error:
        raise Mistake(_why(path, error)) from error


def with_weights(checkpoint: Any, path: str) -> dict[str, Any]:
    """A checkpoint as it was read, expanded, if there are weights in it.

    Raises:
        Mistake: If it holds no tensors by name.
    """
    checkpoint = expand(checkpoint, path)
    named = isinstance(checkpoint, Mapping)
    weights = checkpoint.get('state_dict', checkpoint) if named else None
    if not isinstance(weights, Mapping) or not any(
        isinstance(value, Tensor) for value in weights.values()
    ):
        raise Mistake(
            f'{path} is no checkpoint: it holds no weights by name, neither '
            'under state_dict nor without it.'
        )
    foreign = [
        name
        for name, value in weights.items()
        if not isinstance(value, Tensor)
        and not str(name).endswith('_extra_state')
    ]
    if foreign and weights is not checkpoint:
        raise Mistake(
            f'{path} is no checkpoint: {foreign[0]!r} in its state_dict is '
            'no tensor.'
        )
    return checkpoint


def is_trusted() -> bool:
    """Whether files may run code, as PyTorch's own variable says."""
    return os.environ.get(TRUST, '0') in ('1', 'y', 'yes', 'true')


def _check_bytes(path: str) -> None:
    """Compare the checksums that torch.save writes and torch.load ignores."""
    with open(path, 'rb') as stream:
        if stream.read(len(_ZIP)) != _ZIP:
            return
        with zipfile.ZipFile(stream) as file:
            changed = file.testzip()
    if changed is not None:
        raise Mistake(
            f'{path} is damaged: the bytes of {changed!r} in it are not '
            'those that were written. Take another copy of it.'
        )


def _not_yet_allowed() -> list[Any]:
    """Of the types that are known, those to allow, and to forbid again."""
    allowed = torch.serialization.get_safe_globals()
    return [known for known in _known_types() if known not in allowed]


def _known_types() -> list[Any]:
    """What a checkpoint of MMEngine holds beside tensors and plain values.

    Under the names of NumPy 1 too. MMEngine's own list has ``getattr``, with
    which a file reaches any module; here it reaches statistics of a log.
    """
    rebuild = np.array(0.0).__reduce__()[0]
    scalar = np.float64(0.0).__reduce__()[0]
    known: list[Any] = [slice, np.ndarray, np.dtype]
    known += {
        type(np.dtype(code)) for code in np.typecodes['All'] if code != 'O'
    }
    for core in ('numpy.core', 'numpy._core'):
        known.append((rebuild, f'{core}.multiarray._reconstruct'))
        known.append((scalar, f'{core}.multiarray.scalar'))
    try:
        from mmengine.logging import HistoryBuffer
    except ImportError:  # What it has written can then not be read.
        return known

    def statistic(owner: Any, name: str) -> Any:
        if owner is not HistoryBuffer or name.startswith('_'):
            raise pickle.UnpicklingError('GLOBAL builtins.getattr was')
        return getattr(owner, name)

    return [*known, HistoryBuffer, (statistic, 'builtins.getattr')]


def _why(path: str, error: Exception) -> str:
    """A sentence on why a file could not be read."""
    wanted = re.search(r'GLOBAL (\S+) w', str(error))
    if wanted:
        return (
            f'{path} is not loaded: it wants {wanted[1]}, which is no plain '
            'data, and to build it may run code. If you trust whoever wrote '
            f'the file, set the environment variable {TRUST}=1.'
        )
    # PyTorch's advice follows the first sentence.
    reason = re.split(r'\. |\n', str(error).strip())[0].rstrip('.')
    if isinstance(error, OSError):
        return f'{path} cannot be read: {reason}.'
    if isinstance(error, pickle.UnpicklingError):
        reason = 'it is no pickle of tensors'
    return (
        f'{path} is no checkpoint, or is damaged: '
        f'{reason or type(error).__name__}.'
    )
