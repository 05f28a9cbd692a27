"""Size and cost of a network under its masks, in a few numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..sparsity import density
from .flops import count_flops


@dataclass(frozen=True)
class Summary:
    """What a network costs.

    Args:
        flops (float): FLOPs of a forward pass on one image under the masks,
            in 2 x MACs.
        dense_flops (int): The same without masks.
        parameters (int): Number of parameters.
        active (int): Those of them that a mask does not hold at zero.
        density (float): Share of active weights, over all masked weights; 1
            without masks.
    """

    flops: float
    dense_flops: int
    parameters: int
    active: int
    density: float


def summarize(model: nn.Module,
              shape: tuple[int, int],
              masks: Mapping[str, Tensor] | None = None,
              **forward_kwargs: Any) -> Summary:
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
        raise KeyError(f'The masks are not of this model: it has no '
                       f'parameters {unknown}.')
    count = count_flops(model, shape, **forward_kwargs)
    total = sum(p.numel() for p in parameters.values())
    masked_out = sum(m.numel() - int(m.count_nonzero())
                     for m in masks.values())
    return Summary(
        flops=count.sparse({n: density({n: m}) for n, m in masks.items()}),
        dense_flops=count.total,
        parameters=total,
        active=total - masked_out,
        density=density(masks) if masks else 1.0)
