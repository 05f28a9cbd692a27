"""Sparse Wide Factorized: wider layers, factorized, without masks."""

from sift_mm.layers.factorized import FactorizedFamily
from sift_mm.layers.family import register


@register
class WideFactorizedFamily(FactorizedFamily):
    """Wide layers whose ranks bring back the FLOPs."""

    name = 'wide_factorized'
    widens = True
    default_factors = 'none'
