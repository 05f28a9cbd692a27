"""RigL."""

from torch import Tensor

from sift_mm.sparsity.algorithms.algorithm import (
    ALGORITHMS,
    Algorithm,
    LayerState,
)


@ALGORITHMS.register
class RigL(Algorithm):
    """Algorithm that grows by dense gradient magnitude (Evci et al. 2020)."""

    needs_gradient = True

    def growth_score(self, layer: LayerState) -> Tensor:
        """Return the magnitudes of the dense mean gradient."""
        assert layer.gradient is not None
        return layer.gradient.abs()
