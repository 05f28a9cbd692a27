"""Sparse execution on the CPU: kernels, patterns and operators."""

from .build import why_unavailable
from .geometry import Geometry, geometry_of, reads_images
from .masked_layers import why_dense
from .memory import keep_freed_memory
from .memory_format import in_format_of, is_channels_last
from .norm import batch_norm
from .ops import PRODUCTS, sparse_conv2d, sparse_conv2d_fused
from .patches import is_overridden
from .pattern import make_pattern
from .pooling import max_pool2d
from .timing import SMALLEST, fastest

__all__ = [
    'PRODUCTS',
    'SMALLEST',
    'Geometry',
    'batch_norm',
    'fastest',
    'geometry_of',
    'in_format_of',
    'is_channels_last',
    'is_overridden',
    'keep_freed_memory',
    'make_pattern',
    'max_pool2d',
    'reads_images',
    'sparse_conv2d',
    'sparse_conv2d_fused',
    'why_dense',
    'why_unavailable',
]
