"""Sparse Doped: a sparse layer beside a dense one of low rank."""

from typing import Any

from torch import Tensor, nn

from sift_mm.flops.isoflop import doped_rank
from sift_mm.layers.composite import Composite, draw
from sift_mm.layers.factorized import Factorized
from sift_mm.layers.family import Family, Member, register
from sift_mm.layers.plain import Norm, make_like, size_of


class Doped(Composite):
    """Sparse W x + dense V(U x) (Sparse-IFT, section 3.4).

    Initialisation: W normal of variance ``scale**2``, as the dense layer, of
    whose output variance its mask leaves the share ``density``; U and V as
    in :class:`Factorized`, dense, for the rest.

    Args:
        layer (nn.Module): The dense layer to replace.
        rank (int): Inner width of the dense part, as for :class:`Factorized`.
        inner (str): What is between U and V: 'none', 'norm', 'norm_act'.
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
        """The sum of both parts, of the dense layer's output shape."""
        return self.sparse(x) + self.low_rank(x)

    def sparse_parameter_names(self) -> list[str]:
        """The weight of the sparse part."""
        return ['sparse.weight']

    def init_weights(self) -> None:
        """Draw all weights anew, see the class."""
        draw(self.sparse, self.scale**2)
        self.low_rank.init_weights()


@register
class DopedFamily(Family):
    """A sparse layer beside a dense one of low rank."""

    name = 'doped'
    layer = Doped

    @classmethod
    def sizes(
        cls, member: Member, layer: nn.Module, step: int, cost: float | None
    ) -> dict[str, Any]:
        """Rank of the dense part."""
        fan_in, fan_out, groups = size_of(layer)
        rank = doped_rank(fan_in, fan_out // groups, member.sparsity, step)
        return dict(rank=groups * rank)
