"""Gradual magnitude pruning."""

from torch import Tensor

from sift_mm.sparsity.algorithms.algorithm import (
    ALGORITHMS,
    Algorithm,
    LayerState,
)
from sift_mm.sparsity.structures import StructureLike
from sift_mm.validation import Sparsity


@ALGORITHMS.register
class GMP(Algorithm):
    """Gradual magnitude pruning (Zhu and Gupta 2017, arXiv:1710.01878).

    At each update the weights of least magnitude are dropped until a layer
    has the sparsity s_f + (s_i - s_f) (1 - t / T)^3, for the layer's final
    sparsity s_f and the last update T. A dropped weight never comes back.

    Args:
        initial (float): Sparsity s_i of the first masks; 0 starts dense.
            Layers of a lower final sparsity start at that.
        structure (str | dict | Structure): Structure of the masks.
    """

    regrows = False

    def __init__(
        self,
        initial: Sparsity = 0.0,
        structure: StructureLike = 'Unstructured',
    ) -> None:
        super().__init__(structure)
        self.initial = initial

    def density(self, final: float, progress: float, fraction: float) -> float:
        """Return the density, which falls by a cubic."""
        first = max(1 - self.initial, final)
        return final + (first - final) * (1 - progress) ** 3

    def growth_score(self, layer: LayerState) -> Tensor:
        """Return zeros: growth only evens out a structure's rounding."""
        return layer.weight.new_zeros(layer.weight.shape)
