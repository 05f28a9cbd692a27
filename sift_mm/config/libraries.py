"""Libraries of the modules that a config names."""

import io
import os.path as osp
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from importlib.util import find_spec

from mmengine.config import Config
from mmengine.registry import MODELS

from sift_mm.backbones import PACKAGES, check_library
from sift_mm.errors import UserError
from sift_mm.names import check_names


@contextmanager
def without_noise() -> Iterator[None]:
    """Drop the libraries' lines about an optional package."""
    out = io.StringIO()
    try:
        with redirect_stdout(out):
            yield
    finally:
        for line in out.getvalue().splitlines(keepends=True):
            if 'Could not import OneDL' not in line:
                sys.stdout.write(line)


def library_of(path: str) -> str | None:
    """Return the library that ships a config, by its folder."""
    found = re.search(rf'/({"|".join(PACKAGES)})/\.mim/', osp.abspath(path))
    return found and found[1]


def import_library(cfg: Config) -> None:
    """Import the library of the config's ``default_scope``, if installed.

    The registries would do it too, with many log lines.

    Raises:
        UserError: If the library is unknown or not installed.
    """
    scope = cfg.get('default_scope', 'mmengine')
    if scope not in PACKAGES:
        # The scope of a user's project, imported by custom_imports.
        if not (scope.isidentifier() and find_spec(scope)):
            known = ['mmengine', *PACKAGES, *MODELS.children]
            check_names('default_scope: there is no library', [scope], known)
        return
    try:
        check_library(scope)
    except ImportError as error:
        raise UserError(f"The config's default_scope: {error}") from error
    with without_noise():
        import_module(f'{scope}.datasets')
