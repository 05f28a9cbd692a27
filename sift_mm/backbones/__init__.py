"""Backbones, each registered in its library's registry.

They share one name in three registries, so they are reached through the
registries (``dict(type='SparseIFTResNet', ...)`` under a default_scope) or
as ``sift_mm.backbones.mmdet.SparseIFTResNet`` and its siblings.
"""

import importlib
from importlib.util import find_spec
from pathlib import Path
from traceback import extract_tb

from sift_mm.backbones.base import SparseIFTBackbone
from sift_mm.backbones.resnet import SparseIFTMixin
from sift_mm.discovery import import_modules

__all__ = ['SparseIFTBackbone', 'SparseIFTMixin', 'register_backbones']

PACKAGES = {
    'mmdet': 'onedl-mmdetection',
    'mmseg': 'onedl-mmsegmentation',
    'mmpretrain': 'onedl-mmpretrain',
}
# Errors of installed libraries whose import fails.
BROKEN: dict[str, Exception] = {}


def register_backbones() -> None:
    """Import all files of this package, which register backbones.

    Files of missing or broken libraries are left out.
    """
    BROKEN.update(import_modules(__name__, optional=PACKAGES))


def check_library(name: str) -> None:
    """Raise an ImportError, with the reason, if a library cannot be used."""
    if find_spec(name) is None:
        raise ImportError(
            f'{name} is not installed; install it with '
            f'`pip install {PACKAGES[name]}`.'
        )
    if name in BROKEN:
        error = BROKEN[name]
        reason = ' '.join(str(error).split())
        place = extract_tb(error.__traceback__)[-1]
        raise ImportError(
            f'{name} is installed and cannot be imported: {reason} '
            f'({type(error).__name__}, at `{place.line}` in '
            f'{"/".join(Path(place.filename).parts[-5:])}). Install versions '
            f'of {name} and its requirements that fit each other.'
        ) from error


def __getattr__(name: str) -> object:
    if name in PACKAGES:
        check_library(name)
        return importlib.import_module(f'{__name__}.{name}')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
