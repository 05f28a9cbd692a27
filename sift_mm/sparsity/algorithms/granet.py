"""Gradual pruning with zero-cost neuroregeneration."""

from sift_mm.sparsity.algorithms.algorithm import ALGORITHMS
from sift_mm.sparsity.algorithms.gmp import GMP
from sift_mm.sparsity.algorithms.rigl import RigL
from sift_mm.sparsity.structures import StructureLike
from sift_mm.validation import Sparsity


@ALGORITHMS.register
class GraNet(RigL, GMP):
    """Gradual pruning with regrowth (Liu et al. 2021, arXiv:2106.10404).

    The density falls as that of GMP. At each update, the drop fraction of the
    weights that are left is dropped too, and as many are grown by the
    magnitude of the dense gradient. The authors prune all layers together;
    here each layer has its own density, so that FLOPs are known.

    Args:
        initial (float): Sparsity of the first masks; 0 starts dense.
        structure (str | dict | Structure): Structure of the masks.
    """

    regrows = True

    def __init__(
        self,
        initial: Sparsity = 0.5,
        structure: StructureLike = 'Unstructured',
    ) -> None:
        super().__init__(initial, structure)
