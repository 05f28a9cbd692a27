"""Sparse Factorized: two layers, V(U x), with sparse factors."""

from typing import Any

from torch import Tensor, nn

from sift_mm.flops.isoflop import factor_densities, factorized_rank
from sift_mm.layers.composite import Composite, initialize, reset_norm
from sift_mm.layers.family import Family, Member, register
from sift_mm.layers.plain import Norm, default_norm, make_like, size_of


class Factorized(Composite):
    """V(act(norm(U x))) of inner width r (Sparse-IFT, section 3.3).

    For a convolution, U has its kernel, stride, padding and dilation, and V
    is 1 x 1. Both have its groups: each group is factorized.

    Initialization, for F inputs of one output: U is normal of variance
    ``1 / (F density)``, so that its outputs have the variance of its inputs.
    V is normal of variance ``share F scale**2 / (m r density)``, with r of
    one group. The mean square m of V's inputs is 1, or 1/2 behind norm and
    ReLU. A factor without mask has density 1.

    Args:
        layer (nn.Module): The dense layer to replace.
        rank (int): Inner width, in channels; a multiple of the groups.
        sparse (str): Masked factors: 'both', 'u' or 'none'.
        inner (str): Modules between U and V: 'none', 'norm', 'norm_act'.
        norm (Callable, optional): Number of channels to a norm; by default
            batch norm, layer norm for a linear layer.
        density (float): Share of active weights of a sparse factor.
        scale (float, optional): As for :class:`Composite`.
        share (float): Share of the dense layer's output variance.
        bias (bool): Whether to have the layer's bias, if it has one.
    """

    def __init__(
        self,
        layer: nn.Module,
        rank: int,
        sparse: str = 'both',
        inner: str = 'none',
        norm: Norm | None = None,
        density: float = 1.0,
        scale: float | None = None,
        share: float = 1.0,
        bias: bool = True,
    ) -> None:
        super().__init__(layer, inner, density, scale)
        self._densities = factor_densities(1 - density, sparse)
        self.sparse = sparse
        self.share = share
        self.u = make_like(layer, d_out=rank)
        self.norm = (
            (norm or default_norm(layer))(rank)
            if inner != 'none'
            else nn.Identity()
        )
        self.act = (
            nn.ReLU(inplace=True) if inner == 'norm_act' else nn.Identity()
        )
        bias = bias and layer.bias is not None
        self.v = make_like(layer, d_in=rank, pointwise=True, bias=bias)
        self.init_weights()

    def forward(self, x: Tensor) -> Tensor:
        """Return the product V(act(norm(U x)))."""
        return self.v(self.act(self.norm(self.u(x))))

    def sparse_parameter_names(self) -> list[str]:
        """Return the names of the sparse factors' weights."""
        names = {'both': ['u', 'v'], 'u': ['u'], 'none': []}[self.sparse]
        return [f'{name}.weight' for name in names]

    def init_weights(self) -> None:
        """Initialize all weights, see the class."""
        fan_in, rank, groups = size_of(self.u)
        density_u, density_v = self._densities
        square = 0.5 if self.inner == 'norm_act' else 1.0
        initialize(self.u, 1 / (fan_in * density_u))
        variance = self.share * fan_in * self.scale**2
        initialize(self.v, variance / (square * rank / groups * density_v))
        reset_norm(self.norm, 1.0)


@register
class FactorizedFamily(Family):
    """Family member of two layers in a row."""

    name = 'factorized'
    default_factors = 'both'
    layer = Factorized

    @classmethod
    def sizes(
        cls, member: Member, layer: nn.Module, step: int, cost: float | None
    ) -> dict[str, Any]:
        """Return the rank and the masked factors."""
        fan_in, fan_out, groups = size_of(layer)
        rank = factorized_rank(
            fan_in,
            fan_out // groups,
            member.sparsity,
            member.factors,
            cost,
            step,
        )
        return dict(rank=groups * rank, sparse=member.factors)
