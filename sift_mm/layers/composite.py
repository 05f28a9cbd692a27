"""What the layers that stand in for a dense one have in common."""

from typing import Any

import torch
from torch import Tensor, nn

from sift_mm.errors import UserError
from sift_mm.flops.isoflop import INNER
from sift_mm.layers.plain import weight_scale


class Composite(nn.Module):
    """A layer made of several, in place of a dense one.

    It reads and gives what the dense layer did, and has its attributes
    (``in_channels``, ``stride``, ...). It is no ``nn.Conv2d``, so that
    nothing fuses it with a norm by mistake.

    Args:
        layer (nn.Module): The dense layer to replace.
        inner (str): 'none', 'norm' or 'norm_act': what follows an inner
            layer.
        density (float): Share of active weights that the masks are meant to
            leave; initialisation allows for it.
        scale (float, optional): Root mean square of the dense layer's
            weights, found if None: at inputs of unit variance the output
            under masks has the variance that the dense layer's has.
    """

    def __init__(
        self, layer: Any, inner: str, density: float, scale: float | None
    ) -> None:
        super().__init__()
        check_inner(inner)
        for name in layer.__constants__:
            setattr(self, name, getattr(layer, name))
        self.inner = inner
        self.density = density
        self.scale = scale or weight_scale(layer)

    def sparse_parameter_names(self) -> list[str]:
        """Names of the weights that masks go on."""
        raise NotImplementedError

    def init_weights(self) -> None:
        """Draw all weights anew."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        if name == 'weight':
            raise AttributeError(
                f'A {type(self).__name__} layer has no one weight. What '
                'reads it does not call the layer; leave this layer dense '
                '(exclude=[...] of sift_mm.transform).'
            )
        return super().__getattr__(name)

    def extra_repr(self) -> str:
        """What follows an inner layer, for ``print``."""
        return f'inner={self.inner!r}'


def check_inner(inner: str) -> None:
    """Refuse, by a ValueError, an unknown inner non-linearity."""
    if inner not in INNER:
        raise UserError(
            f'inner is what follows an inner layer, one of '
            f'{INNER}; got {inner!r}.'
        )


@torch.no_grad()
def draw(layer: Any, variance: float) -> None:
    """Normal weights of mean 0 and a variance; a bias of 0."""
    layer.weight.normal_(0, variance**0.5)
    if layer.bias is not None:
        layer.bias.zero_()


@torch.no_grad()
def reset_norm(norm: nn.Module, value: float) -> None:
    """Give a norm's weight a value and its bias 0, if it has them."""
    for name, number in (('weight', value), ('bias', 0.0)):
        tensor = getattr(norm, name, None)
        if isinstance(tensor, Tensor):
            tensor.fill_(number)
