"""Sparse networks from scratch."""

from torch import Tensor

from sift_mm.sparsity.algorithms.algorithm import (
    ALGORITHMS,
    Algorithm,
    LayerState,
)


@ALGORITHMS.register
class SNFS(Algorithm):
    """Growth by momentum (Dettmers and Zettlemoyer 2019, arXiv:1907.04840).

    Weights are grown where the running mean of the dense gradient is largest
    in magnitude. Its decay is the optimizer's: ``momentum`` of SGD, the first
    of ``betas`` of Adam. The optimizer's own slot is zero outside the masks,
    so that the mean is held apart, a float for each weight. Weights are not
    moved between layers, unlike in the paper, so that FLOPs stay.
    """

    needs_momentum = True

    def growth_score(self, layer: LayerState) -> Tensor:
        """Return the magnitudes of the running mean of the dense gradient."""
        assert layer.momentum is not None
        return layer.momentum.abs()

    def training_flops(
        self, sparse: float, dense: float, interval: int, end: float
    ) -> float:
        """Return the FLOPs per training sample, averaged over all steps.

        The dense gradient is computed in each step until the last update:
        2 f_S + f_D (RigL, appendix H). :meth:`Algorithm.training_flops` has
        the arguments.
        """
        return 3 * sparse + end * (dense - sparse)
