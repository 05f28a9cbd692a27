"""Mask-training algorithms, one file each; every file here is imported."""

from sift_mm.discovery import import_modules
from sift_mm.sparsity.algorithms.algorithm import (
    ALGORITHMS,
    Algorithm,
    AlgorithmLike,
    Growth,
    LayerState,
)
from sift_mm.sparsity.algorithms.rigl import RigL
from sift_mm.sparsity.algorithms.set import SET
from sift_mm.sparsity.algorithms.srigl import SRigL
from sift_mm.sparsity.algorithms.static import Static

import_modules(__name__)
