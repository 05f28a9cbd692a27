"""Layers of the Sparse-IFT family, and their use in a network."""

from sift_mm.discovery import import_modules
from sift_mm.layers.composite import Composite
from sift_mm.layers.doped import Doped
from sift_mm.layers.factorized import Factorized
from sift_mm.layers.family import Family, Member, families, register
from sift_mm.layers.parallel import Parallel
from sift_mm.layers.replacement import transform
from sift_mm.layers.report import (
    NothingReplaced,
    Replacement,
    TransformReport,
)
from sift_mm.layers.wide import Wide

__all__ = [
    'Composite',
    'Doped',
    'Factorized',
    'Family',
    'Member',
    'NothingReplaced',
    'Parallel',
    'Replacement',
    'TransformReport',
    'Wide',
    'families',
    'register',
    'transform',
]

import_modules(__name__)  # Each file registers its member.
