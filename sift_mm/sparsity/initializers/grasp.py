"""Gradient signal preservation."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sift_mm.errors import UserError
from sift_mm.sparsity.initializers.initializer import INITIALIZERS
from sift_mm.sparsity.initializers.network_initializer import (
    NetworkInitializer,
    Passes,
    gradients,
)
from sift_mm.sparsity.processes import mean_of_ranks_


@INITIALIZERS.register
class GraSP(NetworkInitializer):
    """Initializer with the smallest -w (H g) (Wang et al. 2020).

    H is the Hessian of the loss and g its gradient: weights whose removal
    lowers the norm of the gradient stay. The loss has no temperature.

    Args:
        batches (int): First batches of the run to read, on each rank.
    """

    def scores(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        passes: Passes,
        density: float,
    ) -> list[Tensor]:
        """Return weight times Hessian-gradient product."""
        weights = list(parameters.values())
        mean = gradients(passes, parameters)
        total = [torch.zeros_like(g) for g in mean]
        for run in passes:
            try:
                first = torch.autograd.grad(
                    run(), weights, create_graph=True, allow_unused=True
                )
                product = torch.stack(
                    [
                        (one * g).sum()
                        for one, g in zip(first, mean, strict=True)
                        if one is not None
                    ]
                ).sum()
                second = torch.autograd.grad(
                    product, weights, allow_unused=True
                )
            except RuntimeError as error:
                raise UserError(
                    "init='GraSP' needs second derivatives, which an operator "
                    f'of the network lacks ({error}); choose SNIP.'
                ) from error
            for sum_, one in zip(total, second, strict=True):
                if one is not None:
                    sum_ += one / len(passes)
        products = mean_of_ranks_(total)
        return [w * h for w, h in zip(weights, products, strict=True)]
