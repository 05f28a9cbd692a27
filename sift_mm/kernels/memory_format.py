"""Memory formats of tensors that the kernels read and write."""

import torch
from torch import Tensor

from sift_mm.errors import UserError, UserTypeError

from .geometry import Geometry


def new(*shape: int, rows: bool = False) -> Tensor:
    """Return an empty float32 tensor on the CPU, whatever the default is.

    Args:
        *shape: Its sizes.
        rows: True for NHWC.
    """
    return torch.empty(
        shape, dtype=torch.float32, device='cpu', memory_format=_format(rows)
    )


def in_order(x: Tensor, rows: bool) -> Tensor:
    """Return a tensor in NHWC if ``rows``, else contiguous."""
    return x.contiguous(memory_format=_format(rows))


def _format(rows: bool) -> torch.memory_format:
    return torch.channels_last if rows else torch.contiguous_format


def are_rows(x: Tensor, geometry: Geometry) -> bool:
    """Return True if the kernels read an input, and write the output, in NHWC.

    Its pixels are rows of features then, as those of a linear layer.
    """
    return geometry.pointwise and is_channels_last(x)


def is_channels_last(x: Tensor) -> bool:
    """Return whether PyTorch gives an output in NHWC for a tensor."""
    last = torch.channels_last
    return (
        x.ndim == 4
        and x.is_contiguous(memory_format=last)
        and not x.is_contiguous()
    )


def in_format_of(out: Tensor, *sources: Tensor) -> Tensor:
    """Return an output in the memory format that PyTorch gives it.

    Args:
        out: The output, contiguous.
        *sources: Input and weight of the call.
    """
    if not any(map(is_channels_last, sources)):
        return out
    return out.contiguous(memory_format=torch.channels_last)


def check(
    x: Tensor, what: str, *shape: int | None, rows: bool = False
) -> Tensor:
    """Return a tensor in the order that the kernels read, if they take it.

    Args:
        x: The tensor.
        what: Its name in a message.
        *shape: Expected sizes; None stands for any size.
        rows: True for NHWC, False for contiguous.

    Raises:
        TypeError: If it is not float32 on the CPU.
        ValueError: If it has another shape.
    """
    if x.dtype != torch.float32 or not x.is_cpu:
        raise UserTypeError(
            f'sparse execution takes float32 on the CPU; the {what} is '
            f'{x.dtype} on {x.device}'
        )
    if x.ndim != len(shape) or any(
        wanted not in (None, size)
        for wanted, size in zip(shape, x.shape, strict=True)
    ):
        expected = ', '.join('any' if n is None else str(n) for n in shape)
        raise UserError(
            f'the {what} has shape {tuple(x.shape)}; expected ({expected})'
        )
    return in_order(x, rows)
