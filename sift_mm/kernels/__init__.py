"""Sparse execution on the CPU: kernels, patterns and operators."""

from .build import KernelsUnavailable, why_unavailable
from .geometry import Geometry
from .ops import sparse_conv2d, sparse_conv2d_fused
from .pattern import make_pattern
from .pooling import max_pool2d

__all__ = [
    'Geometry',
    'KernelsUnavailable',
    'make_pattern',
    'max_pool2d',
    'sparse_conv2d',
    'sparse_conv2d_fused',
    'why_unavailable',
]
