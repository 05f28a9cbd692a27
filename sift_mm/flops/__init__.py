"""FLOPs: counting them, by layer and model, and iso-FLOP arithmetic."""

from sift_mm.flops.counting import (
    FlopCount,
    count_call,
    count_flops,
    count_while,
    describe_shape,
    image_channels,
    meta_image,
    on_meta,
    skip_norms,
    watched,
)
from sift_mm.flops.layer_costs import Profile, Row, mask_densities, profile
from sift_mm.flops.meta_operators import plain_operators
from sift_mm.flops.model_forward import count_model

__all__ = [
    'FlopCount',
    'Profile',
    'Row',
    'count_call',
    'count_flops',
    'count_model',
    'count_while',
    'describe_shape',
    'image_channels',
    'mask_densities',
    'meta_image',
    'on_meta',
    'plain_operators',
    'profile',
    'skip_norms',
    'watched',
]
