"""What a network costs and what a mask did."""

from .flops import FlopCount, count_flops
from .spectral import SpectralGap, spectral_gap

__all__ = ['FlopCount', 'SpectralGap', 'count_flops', 'spectral_gap']
