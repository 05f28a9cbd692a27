"""Size and cost of a network under its masks, in a few numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sift_mm.flops import FlopCount, count_flops


@dataclass(frozen=True)
class Summary:
    """What a network costs.

    Args:
        count (FlopCount): FLOPs of a forward pass on one image, all weights
            dense.
        densities (Mapping[str, float]): Share of active weights by name of
            each masked parameter.
        parameters (int): Number of parameters.
        active (int): Those of them that a mask does not hold at zero.
        density (float): Share of active weights, over all masked weights; 1
            without masks.
    """

    count: FlopCount
    densities: Mapping[str, float]
    parameters: int
    active: int
    density: float

    def flops(self, module: str = '') -> float:
        """FLOPs under the masks, of the whole or a submodule, 2 x MACs."""
        return self.count.sparse(self.densities, module)


def summarize(
    model: nn.Module,
    shape: tuple[int, int],
    masks: Mapping[str, Tensor] | None = None,
    **forward_kwargs: Any,
) -> Summary:
    """Count a network's FLOPs and parameters, dense and under masks.

    Args:
        model (nn.Module): As for :func:`count_flops`.
        shape (tuple[int, int]): Height and width of the image, in pixels.
        masks (Mapping[str, Tensor], optional): Bool masks by parameter name,
            as a checkpoint has them.
        **forward_kwargs: Further arguments of the forward method.

    Returns:
        Summary: The numbers.

    Raises:
        KeyError: If a mask's name is no parameter of the model.
    """
    masks = masks or {}
    parameters = dict(model.named_parameters())
    unknown = [name for name in masks if name not in parameters]
    if unknown:
        raise KeyError(
            f'The masks are not of this model: it has no parameters {unknown}.'
        )
    count = count_flops(model, shape, **forward_kwargs)
    total = sum(p.numel() for p in parameters.values())
    counts = {name: int(m.count_nonzero()) for name, m in masks.items()}
    masked = sum(m.numel() for m in masks.values())
    active = sum(counts.values())
    return Summary(
        count=count,
        densities={n: counts[n] / m.numel() for n, m in masks.items()},
        parameters=total,
        active=total - masked + active,
        density=active / masked if masks else 1.0,
    )
