"""Mask-training algorithms, one file each; every file here is imported."""

from sift_mm.discovery import import_modules
from sift_mm.sparsity.algorithms.algorithm import (
    ALGORITHMS,
    Algorithm,
    AlgorithmLike,
    Growth,
    LayerState,
    drop_count,
)
from sift_mm.sparsity.algorithms.cht import CHT
from sift_mm.sparsity.algorithms.gmp import GMP
from sift_mm.sparsity.algorithms.granet import GraNet
from sift_mm.sparsity.algorithms.mest import MEST
from sift_mm.sparsity.algorithms.rigl import RigL
from sift_mm.sparsity.algorithms.set import SET
from sift_mm.sparsity.algorithms.snfs import SNFS
from sift_mm.sparsity.algorithms.srigl import SRigL
from sift_mm.sparsity.algorithms.static import Static

__all__ = [
    'ALGORITHMS',
    'CHT',
    'GMP',
    'MEST',
    'SET',
    'SNFS',
    'Algorithm',
    'AlgorithmLike',
    'GraNet',
    'Growth',
    'LayerState',
    'RigL',
    'SRigL',
    'Static',
    'drop_count',
]

import_modules(__name__)
