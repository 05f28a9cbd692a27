"""What a network costs and what a mask did."""

from sift_mm.analysis.layer_costs import Profile, Row, profile
from sift_mm.analysis.spectral import SpectralGap, spectral_gap
from sift_mm.analysis.summary import Summary, summarize
from sift_mm.flops import FlopCount, count_call, count_flops, on_meta

__all__ = [
    'FlopCount',
    'Profile',
    'Row',
    'SpectralGap',
    'Summary',
    'count_call',
    'count_flops',
    'on_meta',
    'profile',
    'spectral_gap',
    'summarize',
]
