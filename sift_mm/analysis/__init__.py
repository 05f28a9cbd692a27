"""What a network costs and what a mask did."""

from .flops import FlopCount, count_call, count_flops, on_meta
from .spectral import SpectralGap, spectral_gap
from .summary import Summary, summarize

__all__ = [
    'FlopCount', 'SpectralGap', 'Summary', 'count_call', 'count_flops',
    'on_meta', 'spectral_gap', 'summarize'
]
