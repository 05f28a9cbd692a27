"""Layers that hold their nonzeros alone and run on the sparse kernels."""

from typing import Any

from torch import Tensor, nn

from sift_mm.kernels import (
    Geometry,
    geometry_of,
    make_pattern,
    max_pool2d,
    pair,
    sparse_conv2d_fused,
)
from sift_mm.layers.plain import plain_type


def sparse_geometry(layer: nn.Module) -> Geometry | None:
    """Geometry of a layer that the kernels may take.

    Args:
        layer (nn.Module): Any layer.

    Returns:
        Geometry, optional: None where it is no plain convolution over two
        dimensions or linear layer, or has groups or a padding of something
        else than zeros.
    """
    kind = plain_type(layer)
    conv: Any = layer
    fits = kind is nn.Linear or (
        kind is nn.Conv2d and conv.groups == 1 and conv.padding_mode == 'zeros'
    )
    return geometry_of(layer) if fits else None


class SparseConv2d(nn.Module):
    """A convolution of the nonzeros of a weight, for inference.

    Args:
        weight (Tensor): Dense float32 of shape (filters, channels, h, w).
        bias (Tensor, optional): Shape (filters,).
        mask (Tensor): Bool of the weight's shape: the places that are kept.
        geometry (Geometry): Stride, padding and dilation.
        relu (bool): Whether negative outputs become zero.
    """

    row: Tensor
    position: Tensor
    index: Tensor
    values: Tensor
    bias: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        mask: Tensor,
        geometry: Geometry,
        relu: bool = False,
    ) -> None:
        super().__init__()
        self.filters, self.channels = weight.shape[:2]
        self.shape = weight.shape
        self.geometry = geometry
        self.relu = relu
        row, position, index = make_pattern(mask, geometry, gradients=False)
        self.register_buffer('row', row)
        self.register_buffer('position', position)
        self.register_buffer('index', index)
        flat = weight.detach().reshape(-1)
        self.register_buffer('values', flat[index.long()])
        self.register_buffer('bias', None if bias is None else bias.detach())

    def scale(self, factor: Tensor, shift: Tensor) -> None:
        """Multiply the outputs by a factor and add a shift, both a filter's.

        Args:
            factor (Tensor): Float64 of shape (filters,).
            shift (Tensor): Float64 of shape (filters,).
        """
        filters = self.index.long() // self.shape[1:].numel()
        values = self.values.double() * factor[filters]
        if self.bias is not None:
            shift = shift + self.bias.double() * factor
        self.values, self.bias = values.float(), shift.float()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Convolve.

        Args:
            x (Tensor): Float32 of shape (images, channels, height, width).
            residual (Tensor, optional): Added before the ReLU; of the
                output's shape, or one that spreads to it.

        Returns:
            Tensor: Shape (images, filters, out height, out width).
        """
        size = self.geometry.out_size(x.shape[-2], x.shape[-1])
        if residual is not None and residual.shape != (
            x.shape[0],
            self.filters,
            *size,
        ):
            total = self._convolve(x, None, False) + residual
            return total.relu() if self.relu else total
        return self._convolve(x, residual, self.relu)

    def _convolve(
        self, x: Tensor, residual: Tensor | None, relu: bool
    ) -> Tensor:
        return sparse_conv2d_fused(
            x,
            self.values,
            self.bias,
            residual,
            relu,
            [self.row, self.position, self.index],
            self.geometry.numbers(),
            self.filters,
        )

    def extra_repr(self) -> str:
        """Sizes and density."""
        density = self.values.numel() / self.shape.numel()
        return f'{tuple(self.shape)}, density={density:.3f}, relu={self.relu}'


class SparseLinear(SparseConv2d):
    """A linear layer of the nonzeros of a weight, for inference.

    Args:
        weight (Tensor): Dense float32 of shape (outputs, inputs).
        bias (Tensor, optional): Shape (outputs,).
        mask (Tensor): Bool of the weight's shape.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, mask: Tensor
    ) -> None:
        super().__init__(
            weight[:, :, None, None],
            bias,
            mask[:, :, None, None],
            Geometry.of((1, 1)),
        )

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Multiply.

        Args:
            x (Tensor): Float32 of shape (..., inputs).
            residual (Tensor, optional): Not used; linear layers have none.

        Returns:
            Tensor: Shape (..., outputs).
        """
        # Rows become the pixels of one image: lanes then are rows.
        rows = x.reshape(-1, self.channels).t()[None, :, None]
        out = super().forward(rows)
        return out[0, :, 0].t().reshape(*x.shape[:-1], self.filters)


class FastMaxPool2d(nn.Module):
    """``nn.MaxPool2d`` on the kernels, equal bit for bit.

    Args:
        pool (nn.MaxPool2d): Of the kind that :func:`can_pool` takes.
    """

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = (
            pair(value)
            for value in (pool.kernel_size, pool.stride, pool.padding)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Pool.

        Args:
            x (Tensor): Shape (images, channels, height, width).

        Returns:
            Tensor: Shape (images, channels, out height, out width).
        """
        return max_pool2d(x, self.kernel, self.stride, self.padding)
