"""Initializers of masks, one file each; every file here is imported."""

from sift_mm.discovery import import_modules
from sift_mm.sparsity.initializers.from_weights import FromWeights
from sift_mm.sparsity.initializers.grasp import GraSP
from sift_mm.sparsity.initializers.initializer import (
    INITIALIZERS,
    Initializer,
    count_tolerance,
)
from sift_mm.sparsity.initializers.network_initializer import (
    NetworkInitializer,
)
from sift_mm.sparsity.initializers.random_positions import Random
from sift_mm.sparsity.initializers.snip import SNIP
from sift_mm.sparsity.initializers.synflow import SynFlow
from sift_mm.sparsity.initializers.top_k import TopK

__all__ = [
    'INITIALIZERS',
    'SNIP',
    'FromWeights',
    'GraSP',
    'Initializer',
    'NetworkInitializer',
    'Random',
    'SynFlow',
    'TopK',
    'count_tolerance',
]

import_modules(__name__)
