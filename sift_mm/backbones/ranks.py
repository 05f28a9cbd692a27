"""Ranks of a Sparse Wide Factorized network, from its FLOPs."""

import math
from collections.abc import Mapping

from torch import nn

from sift_mm.errors import UserError
from sift_mm.flops import FlopCount
from sift_mm.flops.isoflop import factor_densities, spread_ranks
from sift_mm.layers import Member
from sift_mm.layers.plain import size_of


def ranks_for(
    layers: Mapping[str, nn.Module],
    member: Member,
    wide: FlopCount,
    dense: FlopCount,
    match: bool,
    multiple: int,
) -> dict[str, int]:
    """Return the ranks of wide factorized layers at the dense FLOPs.

    Args:
        layers (Mapping[str, nn.Module]): Layers of the wide network by name,
            before the factorization.
        member (Member): The member, 'wide_factorized'.
        wide (FlopCount): FLOPs of the wide network.
        dense (FlopCount): FLOPs of its dense twin.
        match (bool): Whether all layers together also pay for the wider stem;
            a ValueError if they cannot. Else each layer has the FLOPs of its
            dense layer, rounded up.
        multiple (int): Divisor of the ranks.
    """
    density_u, density_v = factor_densities(member.sparsity, member.factors)
    exact, costs = {}, {}
    for name, layer in layers.items():
        fan_in, fan_out, _ = size_of(layer)
        positions = wide.by_module[name] / (fan_in * fan_out)
        costs[name] = positions * (density_u * fan_in + density_v * fan_out)
        exact[name] = dense.by_module[name] / costs[name]
    # Masks, if any, pay for the stem.
    if not match or member.factors != 'none':
        return {
            name: math.ceil(rank / multiple - 1e-9) * multiple
            for name, rank in exact.items()
        }
    rest = wide.total - sum(wide.by_module[name] for name in layers)
    share = (dense.total - rest) / sum(
        dense.by_module[name] for name in layers
    )
    if share <= 0:
        raise UserError(
            f'At sparsity {member.sparsity} the wider stem alone '
            f'costs {rest / dense.total:.3g} of the dense FLOPs.'
        )
    exact = {name: share * rank for name, rank in exact.items()}
    return spread_ranks(exact, costs, multiple)
