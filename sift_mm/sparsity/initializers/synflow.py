"""Iterative synaptic flow pruning."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from sift_mm.sparsity.initializers.initializer import INITIALIZERS
from sift_mm.sparsity.initializers.network_initializer import (
    NetworkInitializer,
    Passes,
    gradients,
    total_of,
)
from sift_mm.sparsity.selection import kth_highest
from sift_mm.validation import Count


@INITIALIZERS.register
class SynFlow(NetworkInitializer):
    """Initializer with the largest ``|w dR/dw|`` (Tanaka et al. 2020).

    R is the sum of the outputs for an input of ones, of the network in eval
    mode with absolute weights, in double precision. The density falls
    exponentially in ``rounds`` steps.

    Args:
        rounds (int): Passes of the network.
    """

    reads: ClassVar[Literal['loss', 'output']] = 'output'

    def __init__(self, rounds: Count = 100) -> None:
        super().__init__()
        self.rounds = rounds

    def scores(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        passes: Passes,
        density: float,
    ) -> list[Tensor]:
        """Return the synaptic saliencies of the last round."""
        model.double().eval()
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.data = tensor.data.abs()

        def double(_: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
            return tree_map(_to_double, (args, kwargs))

        # Sums of absolute weights leave the range of float32.
        hook = model.register_forward_pre_hook(double, with_kwargs=True)
        try:
            for step in range(1, self.rounds + 1):
                found = gradients([lambda: total_of(passes[0]())], parameters)
                scores = [
                    (w.detach() * g).abs()
                    for w, g in zip(parameters.values(), found, strict=True)
                ]
                left = density ** (step / self.rounds)
                _cut(parameters.values(), scores, left)
        finally:
            hook.remove()
        return scores


def _cut(
    weights: Iterable[nn.Parameter], scores: list[Tensor], density: float
) -> None:
    """Set all but a share of the weights to zero, by score."""
    flat = torch.cat([score.flatten() for score in scores])
    left = max(1, round(density * len(flat)))
    floor = kth_highest(flat, left)
    for weight, score in zip(weights, scores, strict=True):
        weight.data = weight.data * (score >= floor)


def _to_double(value: Any) -> Any:
    """Return a floating-point tensor in double precision."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.double()
    return value
