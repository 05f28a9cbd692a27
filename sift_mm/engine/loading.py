"""MMEngine reads checkpoints as :mod:`sift_mm.reading` does."""

import os
from collections.abc import Callable
from functools import wraps
from typing import Any
from unittest import mock

from mmengine.runner import CheckpointLoader

from sift_mm.reading import is_trusted, read, safely, with_weights


def _safe(load: Callable[..., Any]) -> Callable[..., Any]:
    """A loader of addresses, such as https, that runs nothing it loads."""

    @wraps(load)  # MMEngine's log has the name.
    def loader(filename: str, *args: Any, **kwargs: Any) -> Any:
        # It says itself how it calls torch.load; this goes above that.
        force = {} if is_trusted() else {'TORCH_FORCE_WEIGHTS_ONLY_LOAD': '1'}
        with safely(filename), mock.patch.dict(os.environ, force):
            checkpoint = load(filename, *args, **kwargs)
        return with_weights(checkpoint, filename)

    return loader


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """Load a local file; under MMEngine's name, which its log has."""
    return read(filename, map_location)


def read_safely() -> None:
    """Makes all of MMEngine's loaders run nothing, and expand what is compact.

    Its own fall back to running a file's code, in silence.
    """
    schemes = CheckpointLoader._schemes
    for prefix, load in list(schemes.items()):
        if load.__module__.startswith('mmengine'):
            CheckpointLoader.register_scheme(
                prefix,
                loader=_safe(load) if prefix else load_from_local,
                force=True,
            )
