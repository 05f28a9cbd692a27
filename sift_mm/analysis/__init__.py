"""What a network costs and what a mask did."""

from .flops import FlopCount, count_call, count_flops, on_meta
from .profile import Profile, Row, profile
from .spectral import SpectralGap, spectral_gap
from .summary import Summary, summarize

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
