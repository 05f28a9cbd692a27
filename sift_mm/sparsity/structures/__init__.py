"""Structures of masks, one file each; every file here is imported."""

from sift_mm.discovery import import_modules
from sift_mm.sparsity.structures.block import Block
from sift_mm.sparsity.structures.constant_fan_in import ConstantFanIn
from sift_mm.sparsity.structures.nm import NM
from sift_mm.sparsity.structures.rows import Rows
from sift_mm.sparsity.structures.structure import (
    STRUCTURES,
    Structure,
    StructureLike,
    check_structures,
    describe_structure,
    fit_counts,
    rounding,
)
from sift_mm.sparsity.structures.unstructured import Unstructured

__all__ = [
    'NM',
    'STRUCTURES',
    'Block',
    'ConstantFanIn',
    'Rows',
    'Structure',
    'StructureLike',
    'Unstructured',
    'check_structures',
    'describe_structure',
    'fit_counts',
    'rounding',
]

import_modules(__name__)
