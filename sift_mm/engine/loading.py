"""MMEngine reads compact checkpoints as it reads any other."""

from collections.abc import Callable
from typing import Any

from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import load_from_http, load_from_local

from sift_mm.compact import cut_files_named, expand


def _expanding(load: Callable[..., Any]) -> Callable[..., Any]:
    def loader(filename: str, *args: Any, **kwargs: Any) -> Any:
        with cut_files_named(filename):
            checkpoint = load(filename, *args, **kwargs)
        return expand(checkpoint, filename)

    return loader


def read_compact_checkpoints() -> None:
    """Makes MMEngine's loaders of files and addresses expand them."""
    for prefixes, load in (
        ('', load_from_local),
        (('http://', 'https://'), load_from_http),
    ):
        CheckpointLoader.register_scheme(
            prefixes, loader=_expanding(load), force=True
        )
