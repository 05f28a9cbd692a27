"""FLOPs of a network, dense and under masks, from one counter.

A multiplication and an addition are two operations: FLOPs are 2 x MACs
throughout, as PyTorch's counter and the RigL paper have it. OpenMMLab's
get_flops tools print MACs under the name of FLOPs, half of this.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class FlopCount:
    """FLOPs of one forward pass of one sample, in 2 x MACs.

    Convolutions and matrix products are counted; norms, activations and
    pooling are not. A shared module counts as often as it runs.

    Args:
        total (int): All of it, with every weight dense.
        by_module (Mapping[str, int]): By module name, children included.
    """

    total: int
    by_module: Mapping[str, int]

    def of(self, parameter: str) -> int:
        """FLOPs of the module that holds a parameter.

        0 for a module that is not called itself in the forward pass.
        """
        return self.by_module.get(parameter.rpartition('.')[0], 0)

    def sparse(self, densities: Mapping[str, float],
               module: str = '') -> float:
        """FLOPs under masks: a masked layer costs its share of weights.

        Args:
            densities (Mapping[str, float]): Share of active weights by
                parameter name; dense where not named.
            module (str): Name of the submodule to count, '' for the whole.

        Returns:
            float: FLOPs of the forward pass, in 2 x MACs.
        """
        dense = self.by_module[module] if module else self.total
        prefix = f'{module}.' if module else ''
        return dense - sum((1 - density) * self.of(name)
                           for name, density in densities.items()
                           if name.startswith(prefix))


def count_flops(model: nn.Module,
                shape: tuple[int, int],
                in_channels: int = 3,
                **forward_kwargs: Any) -> FlopCount:
    """Count the FLOPs of a forward pass on one image.

    Runs a copy of the model on the meta device: no arithmetic, no memory
    for activations, the model untouched.

    Args:
        model (nn.Module): A backbone, or a detector, segmentor or classifier
            with ``mode='tensor'`` as a keyword.
        shape (tuple[int, int]): Height and width of the image, in pixels.
        in_channels (int): Channels of the image.
        **forward_kwargs: Further arguments of the forward method.

    Returns:
        FlopCount: Counts in 2 x MACs.
    """
    image = torch.empty(1, in_channels, *shape, device='meta')
    return count_call(on_meta(model), image, **forward_kwargs)


def on_meta(model: nn.Module) -> nn.Module:
    """A copy of a model in eval mode that has shapes, but no numbers."""
    model = copy.deepcopy(model).to('meta')
    model.eval()  # OpenMMLab's backbones return nothing here.
    return model


def count_call(model: nn.Module, *args: Any, **kwargs: Any) -> FlopCount:
    """Count the FLOPs of one call of a model, see :class:`FlopCount`."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(*args, **kwargs)
    root = type(model).__name__
    counts = {name: sum(ops.values())
              for name, ops in counter.get_flop_counts().items()}
    by_module = {name.removeprefix(f'{root}.'): count
                 for name, count in counts.items()
                 if name.startswith(f'{root}.')}
    return FlopCount(counter.get_total_flops(), by_module)
