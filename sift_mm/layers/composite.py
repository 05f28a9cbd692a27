"""Base of the layers that replace one dense layer."""

from typing import Any

import torch
from torch import Tensor, nn

from sift_mm.errors import UserError
from sift_mm.flops.isoflop import INNER
from sift_mm.layers.plain import weight_scale


class Composite(nn.Module):
    """Several layers in place of one dense layer.

    Inputs, outputs and attributes (``in_channels``, ``stride``, ...) are the
    dense layer's. It is no ``nn.Conv2d``: other tools would fuse that with a
    norm.

    Args:
        layer (nn.Module): The dense layer to replace.
        inner (str): Modules behind an inner layer: 'none', 'norm' or
            'norm_act'.
        density (float): Expected share of active weights, for the
            initialization.
        scale (float, optional): Root mean square of the dense layer's
            weights; None measures it. Under masks, the output keeps the
            variance of the dense layer's at inputs of unit variance.
    """

    def __init__(
        self, layer: Any, inner: str, density: float, scale: float | None
    ) -> None:
        super().__init__()
        check_inner(inner)
        for name in getattr(layer, '__constants__', ('nx', 'nf')):
            setattr(self, name, getattr(layer, name))
        self.inner = inner
        self.density = density
        self.scale = scale or weight_scale(layer)

    def sparse_parameter_names(self) -> list[str]:
        """Return the names of the masked weights."""
        raise NotImplementedError

    def init_weights(self) -> None:
        """Initialize all weights."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        if name == 'weight':
            raise AttributeError(
                f'A {type(self).__name__} layer has no single weight, and the '
                'caller reads it: leave this layer dense (exclude=[...] of '
                'sift_mm.transform).'
            )
        return super().__getattr__(name)

    def extra_repr(self) -> str:
        """Return the modules behind an inner layer, for ``print``."""
        return f'inner={self.inner!r}'


def check_inner(inner: str) -> None:
    """Refuse an unknown inner non-linearity with a ValueError."""
    if inner not in INNER:
        raise UserError(
            f'inner, the module behind an inner layer, has to be one of '
            f'{INNER}, not {inner!r}.'
        )


@torch.no_grad()
def initialize(layer: Any, variance: float) -> None:
    """Draw normal weights of mean 0 and a variance; set the bias to 0."""
    layer.weight.normal_(0, variance**0.5)
    if layer.bias is not None:
        layer.bias.zero_()


@torch.no_grad()
def reset_norm(norm: nn.Module, value: float) -> None:
    """Set a norm's weight to a value and its bias to 0, if it has them."""
    for name, number in (('weight', value), ('bias', 0.0)):
        tensor = getattr(norm, name, None)
        if isinstance(tensor, Tensor):
            tensor.fill_(number)
