"""What a network costs and what a mask did."""

from sift_mm.analysis.layer_costs import Profile, Row, mask_densities, profile
from sift_mm.analysis.model_forward import count_model
from sift_mm.analysis.spectral import SpectralGap, spectral_gap
from sift_mm.flops import FlopCount, count_call, count_flops, on_meta

__all__ = [
    'FlopCount',
    'Profile',
    'Row',
    'SpectralGap',
    'count_call',
    'count_flops',
    'count_model',
    'mask_densities',
    'on_meta',
    'profile',
    'spectral_gap',
]
