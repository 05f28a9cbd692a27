"""Sparse Doped: a sparse layer plus a dense layer of low rank."""

from typing import Any

from torch import Tensor, nn

from sift_mm.flops.isoflop import doped_rank
from sift_mm.layers.composite import Composite, initialize
from sift_mm.layers.factorized import Factorized
from sift_mm.layers.family import Family, Member, register
from sift_mm.layers.plain import Norm, make_like, size_of


class Doped(Composite):
    """Sparse W x + dense V(U x) (Sparse-IFT, section 3.4).

    Initialization: W is normal of variance ``scale**2``, so that its mask
    leaves the share ``density`` of the dense layer's output variance. U and V
    are as in :class:`Factorized`, dense, and give the rest.

    Args:
        layer (nn.Module): The dense layer to replace.
        rank (int): Inner width of the dense part, as for :class:`Factorized`.
        inner (str): Modules between U and V: 'none', 'norm', 'norm_act'.
        norm (Callable, optional): As for :class:`Factorized`.
        density (float): Share of active weights of W.
        scale (float, optional): As for :class:`Factorized`.
    """

    def __init__(
        self,
        layer: nn.Module,
        rank: int,
        inner: str = 'none',
        norm: Norm | None = None,
        density: float = 0.5,
        scale: float | None = None,
    ) -> None:
        super().__init__(layer, inner, density, scale)
        self.sparse = make_like(layer, bias=layer.bias is not None)
        self.low_rank = Factorized(
            layer,
            rank,
            sparse='none',
            inner=inner,
            norm=norm,
            scale=self.scale,
            share=1 - density,
            bias=False,
        )
        self.init_weights()

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both parts."""
        return self.sparse(x) + self.low_rank(x)

    def sparse_parameter_names(self) -> list[str]:
        """Return the name of the sparse part's weight."""
        return ['sparse.weight']

    def init_weights(self) -> None:
        """Initialize all weights, see the class."""
        initialize(self.sparse, self.scale**2)
        self.low_rank.init_weights()


@register
class DopedFamily(Family):
    """Family member of a sparse layer plus a dense layer of low rank."""

    name = 'doped'
    layer = Doped

    @classmethod
    def sizes(
        cls, member: Member, layer: nn.Module, step: int, cost: float | None
    ) -> dict[str, Any]:
        """Return the rank of the dense part."""
        fan_in, fan_out, groups = size_of(layer)
        rank = doped_rank(fan_in, fan_out // groups, member.sparsity, step)
        return dict(rank=groups * rank)
