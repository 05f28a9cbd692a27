"""Sparse Parallel: the sum of several sparse layers of the same shape."""

from typing import Any

import torch
from torch import Tensor, nn

from sift_mm.flops.isoflop import parallel_branches
from sift_mm.layers.composite import Composite, draw, reset_norm
from sift_mm.layers.family import Family, Member, register
from sift_mm.layers.plain import Norm, default_norm, make_like, size_of


class Parallel(Composite):
    """Sum of k branches (Sparse-IFT, section 3.2), all of them sparse.

    ``y = sum_i act(norm_i(W_i x))``. The authors' CIFAR networks have
    'norm', a sum of BN(conv(x)), their ImageNet networks 'norm_act', a sum of
    ReLU(BN(conv(x))); neither has a norm behind the sum.

    Initialisation: each branch normal, of variance ``scale**2 / (k density)``;
    norms of weight ``1 / sqrt(k)``, since k independent branches of unit
    variance add up to k.

    Args:
        layer (nn.Module): The dense layer to replace.
        branches (int): Number of branches, k.
        inner (str): What follows each branch: 'none', 'norm', 'norm_act'.
        norm (Callable, optional): As for :class:`Factorized`.
        density (float, optional): Share of active weights, 1 / k if None.
        scale (float, optional): As for :class:`Factorized`.
    """

    def __init__(
        self,
        layer: nn.Module,
        branches: int,
        inner: str = 'none',
        norm: Norm | None = None,
        density: float | None = None,
        scale: float | None = None,
    ) -> None:
        super().__init__(layer, inner, density or 1 / branches, scale)
        norm = norm or default_norm(layer)
        # A norm has a bias of its own, and of a plain sum one is enough.
        bias = layer.bias is not None and inner == 'none'
        self.layers = nn.ModuleList(
            make_like(layer, bias=bias and not i) for i in range(branches)
        )
        self.norms = nn.ModuleList(
            norm(size_of(layer)[1]) for _ in range(branches) if inner != 'none'
        )
        self.act = (
            nn.ReLU(inplace=True) if inner == 'norm_act' else nn.Identity()
        )
        self.init_weights()

    def forward(self, x: Tensor) -> Tensor:
        """The sum over branches, of the dense layer's output shape."""
        total: Tensor | None = None
        for i, layer in enumerate(self.layers):
            out = layer(x)
            if self.norms:
                out = self.act(self.norms[i](out))
            total = out if total is None else total + out
        assert total is not None
        return total

    def sparse_parameter_names(self) -> list[str]:
        """The weights of all branches."""
        return [f'layers.{i}.weight' for i in range(len(self.layers))]

    def init_weights(self) -> None:
        """Draw all weights anew, see the class."""
        branches = len(self.layers)
        for layer in self.layers:
            draw(layer, self.scale**2 / (branches * self.density))
        for norm in self.norms:
            reset_norm(norm, branches**-0.5)

    @torch.no_grad()
    def zero_norms(self) -> None:
        """Start from an output of zero, as the last norm of a residual block.

        Not before an activation: where all inputs of a ReLU are exactly 0, no
        gradient passes and the branch would stay at zero for good.
        """
        if self.inner == 'norm':
            for norm in self.norms:
                reset_norm(norm, 0.0)


@register
class ParallelFamily(Family):
    """Several layers of the same shape, added up."""

    name = 'parallel'
    layer = Parallel

    @classmethod
    def sizes(
        cls, member: Member, layer: nn.Module, step: int, cost: float | None
    ) -> dict[str, Any]:
        """Number of branches."""
        return dict(branches=parallel_branches(member.sparsity))
