"""Backbones, each registered in its library's registry.

They share one name in three registries, so they are reached through the
registries (``dict(type='SparseIFTResNet', ...)`` under a default_scope) or
as ``sift_mm.backbones.mmdet.SparseIFTResNet`` and its siblings.
"""

import importlib
from importlib.util import find_spec

from sift_mm.backbones.base import SparseIFTBackbone
from sift_mm.backbones.resnet import SparseIFTMixin
from sift_mm.discovery import import_modules

__all__ = ['SparseIFTBackbone', 'SparseIFTMixin', 'register_backbones']

PACKAGES = {
    'mmdet': 'onedl-mmdetection',
    'mmseg': 'onedl-mmsegmentation',
    'mmpretrain': 'onedl-mmpretrain',
}


def register_backbones() -> None:
    """Import all files here, which register backbones.

    Those of a library that is not installed are left out; one that is there
    but broken says so.
    """
    import_modules(__name__, optional=PACKAGES)


def __getattr__(name: str) -> object:
    if name in PACKAGES:
        if find_spec(name) is None:
            raise ImportError(
                f'sift_mm.backbones.{name} needs the library {name}; install '
                f'it with `pip install {PACKAGES[name]}`.'
            )
        return importlib.import_module(f'{__name__}.{name}')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
