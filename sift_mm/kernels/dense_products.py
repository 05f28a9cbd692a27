"""Dense products of a layer, run by PyTorch."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .geometry import Geometry


def dense_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    transposed: bool = False,
) -> Tensor:
    """Run ``nn.Linear`` (rows of two dimensions) or ``nn.Conv2d``.

    The weight of a linear layer is (in, out) if ``transposed``.
    """
    if x.ndim == 2:
        return F.linear(x, weight.t() if transposed else weight, bias)
    around, rest = _arguments(geometry)
    return torch.ops.aten.convolution(_pad(x, around), weight, bias, *rest)


def dense_gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    geometry: Geometry,
    of_input: bool,
    of_weight: bool,
    transposed: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Return the chosen gradients of ``dense_forward``, differentiable."""
    if not (of_input or of_weight):
        return None, None
    if x.ndim == 2:
        rows, columns = (x, grad) if transposed else (grad, x)
        weight = weight.t() if transposed else weight
        return (
            grad @ weight if of_input else None,
            rows.t() @ columns if of_weight else None,
        )
    around, rest = _arguments(geometry)
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad,
        _pad(x, around),
        weight,
        None,
        *rest,
        [of_input, of_weight, False],
    )
    if of_input:
        grad_x = _pad(grad_x, tuple(-size for size in around))
    return grad_x, grad_weight


def _arguments(geometry: Geometry) -> tuple[tuple[int, ...], tuple[Any, ...]]:
    """Return the padding to add before a convolution, and aten's arguments."""
    h, w = geometry.h, geometry.w
    around = (w.before, w.after, h.before, h.after)
    # aten pads both sides of an axis by the same amount.
    own = min(around) >= 0 and w.before == w.after and h.before == h.after
    padding = [h.before, w.before] if own else [0, 0]
    return (0,) * 4 if own else around, (
        [h.stride, w.stride],
        padding,
        [h.dilation, w.dilation],
        False,
        [0, 0],
        1,
    )


def _pad(x: Tensor, around: tuple[int, ...]) -> Tensor:
    return F.pad(x, around) if any(around) else x
