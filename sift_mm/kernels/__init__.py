"""Sparse execution on the CPU: kernels, patterns and operators."""

from .build import KernelsUnavailable, why_unavailable
from .convolution import is_zero_outside
from .geometry import Geometry, geometry_of, pair, reads_images
from .memory import keep_freed_memory
from .norm import batch_norm
from .ops import PRODUCTS, sparse_conv2d, sparse_conv2d_fused
from .pattern import make_pattern
from .pooling import can_pool, max_pool2d
from .timing import (
    SMALLEST,
    Timing,
    fastest,
    multiplications,
    time_products,
)

__all__ = [
    'PRODUCTS',
    'SMALLEST',
    'Geometry',
    'KernelsUnavailable',
    'Timing',
    'batch_norm',
    'can_pool',
    'fastest',
    'geometry_of',
    'is_zero_outside',
    'keep_freed_memory',
    'make_pattern',
    'max_pool2d',
    'multiplications',
    'pair',
    'reads_images',
    'sparse_conv2d',
    'sparse_conv2d_fused',
    'time_products',
    'why_unavailable',
]
