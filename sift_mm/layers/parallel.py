"""Sparse Parallel: the sum of several sparse layers of the same shape."""

from typing import Any

import torch
from torch import Tensor, nn

from sift_mm.flops.isoflop import parallel_branches
from sift_mm.layers.composite import Composite, initialize, reset_norm
from sift_mm.layers.family import Family, Member, register
from sift_mm.layers.plain import Norm, default_norm, make_like, size_of


class Parallel(Composite):
    """Sum of k sparse branches (Sparse-IFT, section 3.2).

    ``y = sum_i act(norm_i(W_i x))``. The authors' CIFAR networks have
    'norm', a sum of BN(conv(x)), their ImageNet networks 'norm_act', a sum of
    ReLU(BN(conv(x))); neither has a norm behind the sum.

    Initialization: each branch is normal of variance
    ``scale**2 / (k density)``; norms have weight ``1 / sqrt(k)``, because k
    independent branches of unit variance add up to variance k.

    Args:
        layer (nn.Module): The dense layer to replace.
        branches (int): Number of branches, k.
        inner (str): Modules behind each branch: 'none', 'norm', 'norm_act'.
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
        # Norms have a bias of their own, and a plain sum needs only one.
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
        """Return the sum over branches."""
        total: Tensor | None = None
        for i, layer in enumerate(self.layers):
            out = layer(x)
            if self.norms:
                out = self.act(self.norms[i](out))
            total = out if total is None else total + out
        assert total is not None
        return total

    def sparse_parameter_names(self) -> list[str]:
        """Return the names of all branches' weights."""
        return [f'layers.{i}.weight' for i in range(len(self.layers))]

    def init_weights(self) -> None:
        """Initialize all weights, see the class."""
        branches = len(self.layers)
        for layer in self.layers:
            initialize(layer, self.scale**2 / (branches * self.density))
        for norm in self.norms:
            reset_norm(norm, branches**-0.5)

    @torch.no_grad()
    def zero_norms(self) -> None:
        """Set the norms to zero, as for the last norm of a residual block.

        Norms before an activation stay: a ReLU whose inputs are all 0 passes
        no gradient, so that the branch would stay at zero.
        """
        if self.inner == 'norm':
            for norm in self.norms:
                reset_norm(norm, 0.0)


@register
class ParallelFamily(Family):
    """Family member of several layers of one shape, added up."""

    name = 'parallel'
    layer = Parallel

    @classmethod
    def sizes(
        cls, member: Member, layer: nn.Module, step: int, cost: float | None
    ) -> dict[str, Any]:
        """Return the number of branches."""
        return dict(branches=parallel_branches(member.sparsity))
