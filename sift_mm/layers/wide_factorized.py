"""Sparse Wide Factorized: wider layers, factorized so that none is masked."""

from sift_mm.layers.factorized import FactorizedFamily
from sift_mm.layers.family import register


@register
class WideFactorizedFamily(FactorizedFamily):
    """Both: layers are wide, and their ranks bring back the FLOPs."""

    name = 'wide_factorized'
    widens = True
    default_factors = 'none'
