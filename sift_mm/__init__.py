"""Sparse-IFT for OpenMMLab: larger sparse networks at the FLOPs of dense.

Importing this package registers backbones, optim wrappers and hooks;
``custom_imports = dict(imports=['sift_mm'])`` is all that a config needs.
Without MMEngine, ``sift_mm.sparsity`` and ``sift_mm.flops`` work on plain
PyTorch.
"""

from importlib.util import find_spec

from sift_mm import deploy
from sift_mm.checkpoint.reading import load_compact, masks_of
from sift_mm.layers import transform
from sift_mm.sparsity import SparseTraining

__all__ = [
    'SparseTraining',
    'deploy',
    'load_compact',
    'masks_of',
    'transform',
]
__version__ = '0.1.0'

if find_spec('mmengine') is not None:
    from sift_mm import engine, models  # noqa: F401
    from sift_mm.backbones import register_backbones

    register_backbones()
