"""Backbones, each registered in its library's registry.

They share one name in three registries, so they are reached through the
registries (``dict(type='SparseIFTResNet', ...)`` under a default_scope) or
as ``sift_mm.backbones.mmdet.SparseIFTResNet`` and its siblings.
"""

import importlib
from importlib.util import find_spec

from sift_mm.backbones.base import SparseIFTBackbone
from sift_mm.backbones.resnet import SparseIFTMixin

__all__ = ['SparseIFTBackbone', 'SparseIFTMixin', 'register_backbones']

PACKAGES = {
    'mmdet': 'onedl-mmdetection',
    'mmseg': 'onedl-mmsegmentation',
    'mmpretrain': 'onedl-mmpretrain',
}


def register_backbones() -> None:
    """Register the backbones of every library that is installed."""
    for library in PACKAGES:
        # A library that is there but broken should say so: only its absence
        # is no error.
        if find_spec(library) is not None:
            importlib.import_module(f'{__name__}.{library}')


def __getattr__(name: str) -> object:
    if name in PACKAGES:
        if find_spec(name) is None:
            raise ImportError(
                f'sift_mm.backbones.{name} needs the library {name}; install '
                f'it with `pip install {PACKAGES[name]}`.'
            )
        return importlib.import_module(f'{__name__}.{name}')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
