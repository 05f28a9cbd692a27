"""What a network costs and what a mask did."""

from .flops import FlopCount, count_flops
from .spectral import SpectralGap, spectral_gap
from .summary import Summary, summarize

__all__ = [
    'FlopCount', 'SpectralGap', 'Summary', 'count_flops', 'spectral_gap',
    'summarize'
]
