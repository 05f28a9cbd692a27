"""Initializers of masks, one file each; every file here is imported."""

from sift_mm.discovery import import_modules
from sift_mm.sparsity.initializers.from_weights import FromWeights
from sift_mm.sparsity.initializers.initializer import (
    INITIALIZERS,
    Initializer,
    count_tolerance,
)
from sift_mm.sparsity.initializers.random_positions import Random
from sift_mm.sparsity.initializers.top_k import TopK

__all__ = [
    'INITIALIZERS',
    'FromWeights',
    'Initializer',
    'Random',
    'TopK',
    'count_tolerance',
]

import_modules(__name__)
