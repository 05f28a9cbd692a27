"""Memory-economic sparse training."""

from torch import Tensor

from sift_mm.checkpoint.packing import count
from sift_mm.errors import UserError
from sift_mm.sparsity.algorithms.algorithm import ALGORITHMS, LayerState
from sift_mm.sparsity.algorithms.set import SET
from sift_mm.sparsity.structures import StructureLike
from sift_mm.validation import Factor


@ALGORITHMS.register
class MEST(SET):
    """Elastic mutation (Yuan et al. 2021, arXiv:2110.14032).

    Weights of least ``|w| + lam |g|`` are dropped, with the gradient of the
    active weights; growth is random, as that of SET.

    Args:
        lam (float): Factor of the gradient, lambda in the paper.
        soft (bool): True for the soft memory bound: an update grows new
            weights on top of the final number, and the next one drops as
            many of all. The network is denser by the drop fraction until the
            last update.
        structure (str | dict | Structure): Structure of the masks.
    """

    drops_by_gradient = True

    def __init__(
        self,
        lam: Factor = 1.0,
        soft: bool = False,
        structure: StructureLike = 'Unstructured',
    ) -> None:
        super().__init__(structure)
        self.lam, self.soft = lam, soft
        if soft and self.structure.density is not None:
            kind = type(self.structure).__name__
            raise UserError(
                'MEST with soft=True makes layers denser between updates, '
                f'and structure={kind!r} has one density: leave soft out.'
            )

    @property
    def changes_density(self) -> bool:
        """True under a soft bound."""
        return self.soft

    def density(self, final: float, progress: float, fraction: float) -> float:
        """Return the density, above the final one under a soft bound."""
        return min(1.0, final * (1 + fraction))

    def keep_count(self, layer: LayerState, fraction: float) -> int:
        """Count the active weights that an update keeps."""
        if self.soft and layer.final is not None:
            return min(count(layer.mask), layer.final)
        return super().keep_count(layer, fraction)

    def drop_score(self, layer: LayerState) -> Tensor:
        """Return the negative of ``|w| + lam |g|``."""
        assert layer.gradient is not None
        gradient = layer.gradient.abs().to(layer.weight)
        return layer.weight.abs().add_(gradient, alpha=self.lam).neg_()
