"""Sparse execution on the CPU: kernels, patterns and operators."""

from .build import KernelsUnavailable, why_unavailable
from .convolution import in_format_of, is_channels_last, is_zero_outside
from .geometry import Geometry, geometry_of, pair, reads_images
from .memory import keep_freed_memory
from .norm import batch_norm
from .ops import PRODUCTS, sparse_conv2d, sparse_conv2d_fused
from .patches import is_overridden
from .pattern import make_pattern
from .pooling import can_pool, max_pool2d
from .timing import SMALLEST, Timing, multiplications, time_products

__all__ = [
    'PRODUCTS',
    'SMALLEST',
    'Geometry',
    'KernelsUnavailable',
    'Timing',
    'batch_norm',
    'can_pool',
    'geometry_of',
    'in_format_of',
    'is_channels_last',
    'is_overridden',
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
