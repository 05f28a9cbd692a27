"""Sparse execution on the CPU: kernels, patterns and operators."""

from .build import KernelsUnavailable, why_unavailable
from .geometry import Geometry, geometry_of, pair, reads_images
from .norm import batch_norm, can_normalize, frozen_batch_norm
from .ops import sparse_conv2d, sparse_conv2d_fused
from .pattern import make_pattern
from .pooling import can_pool, max_pool2d
from .products import DENSE, PRODUCTS, masked_layer
from .relu import can_rectify, relu
from .timing import SMALLEST, Timing, multiplications, time_products

__all__ = [
    'DENSE',
    'PRODUCTS',
    'SMALLEST',
    'Geometry',
    'KernelsUnavailable',
    'Timing',
    'batch_norm',
    'can_normalize',
    'can_pool',
    'can_rectify',
    'frozen_batch_norm',
    'geometry_of',
    'make_pattern',
    'max_pool2d',
    'masked_layer',
    'multiplications',
    'pair',
    'reads_images',
    'relu',
    'sparse_conv2d',
    'sparse_conv2d_fused',
    'time_products',
    'why_unavailable',
]
