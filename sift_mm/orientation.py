"""Orientation of weights: transformers' Conv1D has its inputs as rows."""

from collections.abc import Mapping

from torch import Tensor, nn


def is_conv1d(kind: type) -> bool:
    """Return whether a class is transformers' Conv1D, a linear layer."""
    # By name: the import would take seconds.
    home = kind.__module__.partition('.')[0]
    return (home, kind.__name__) == ('transformers', 'Conv1D')


def inputs_first(layer: nn.Module) -> bool:
    """Return whether a layer's weight is (in, out), as GPT-2's are."""
    return any(map(is_conv1d, type(layer).__mro__))


def mark_inputs_first(layer: nn.Module) -> None:
    """Mark the weight of a layer, for :func:`filters_first`."""
    layer.weight.inputs_first = True  # type: ignore[union-attr]


def filters_first(tensor: Tensor, weight: Tensor | None) -> Tensor:
    """Return a tensor of a weight's shape with filters as rows, or back.

    Args:
        tensor (Tensor): Weight, gradient, score or mask.
        weight (nn.Parameter, optional): The weight, marked if it has its
            inputs first.
    """
    return tensor.t() if hasattr(weight, 'inputs_first') else tensor


def inputs_first_names(weights: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the weights that have their inputs first."""
    return [n for n, w in weights.items() if hasattr(w, 'inputs_first')]


def filter_shape(weight: Tensor) -> tuple[int, ...]:
    """Return the shape of a weight with its filters first."""
    return tuple(filters_first(weight, weight).shape)
