"""A data set's folder appears when it is whole."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class DataError(Exception):
    """Why the data set cannot be had, in one sentence for the user."""


@contextmanager
def made_whole(root: Path, ours: bool,
               is_complete: Callable[[], bool]) -> Iterator[Path]:
    """Give a folder beside the root, whose `made` takes the root's place.

    An error leaves the root as it was.

    Args:
        root: The data set's folder.
        ours: Whether what is there was made before, so that it is replaced.
        is_complete: Whether the root is whole by now.

    Yields:
        A folder that is removed in the end; `made` in it is to be filled.

    Raises:
        DataError: If the root holds something else.
    """
    empty = root.is_dir() and not any(root.iterdir())
    if root.exists() and not ours and not empty:
        raise DataError(
            f'{root} is not a data set that this wrote: remove it or name '
            'another folder with --root.')
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
            prefix=f'.{root.name}-', dir=root.parent) as name:
        scratch = Path(name)
        yield scratch
        if ours:
            os.replace(root, scratch / 'old')
        try:
            os.replace(scratch / 'made', root)
        except OSError:
            # Another process may have been faster.
            if not is_complete():
                raise
