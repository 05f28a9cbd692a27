"""Sparse-IFT for OpenMMLab: larger sparse networks at the FLOPs of dense.

Importing this package registers backbones, optim wrappers and hooks;
``custom_imports = dict(imports=['sift_mm'])`` is all that a config needs.
"""

from . import engine
from .backbones import register_backbones

__version__ = '0.1.0'

register_backbones()

__all__ = ['engine']
