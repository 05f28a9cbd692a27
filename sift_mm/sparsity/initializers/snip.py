"""Single-shot pruning by connection sensitivity."""

from collections.abc import Mapping

from torch import Tensor, nn

from sift_mm.sparsity.initializers.initializer import INITIALIZERS
from sift_mm.sparsity.initializers.network_initializer import (
    NetworkInitializer,
    Passes,
    gradients,
)


@INITIALIZERS.register
class SNIP(NetworkInitializer):
    """Initializer with the largest ``|w g|`` of the loss (Lee et al. 2019).

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
        """Return the magnitude of weight times gradient."""
        found = gradients(passes, parameters)
        weights = parameters.values()
        return [(w * g).abs() for w, g in zip(weights, found, strict=True)]
