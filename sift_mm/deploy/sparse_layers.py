"""Layers that hold their nonzeros alone and run on the sparse kernels."""

from torch import Tensor, nn

from sift_mm.kernels import (
    Geometry,
    make_pattern,
    max_pool2d,
    pair,
    sparse_conv2d_fused,
)

PATTERN = ('row', 'position', 'index')


class SparseConv2d(nn.Module):
    """A convolution of the nonzeros of a weight, for inference.

    Args:
        weight (Tensor): Dense float32 of shape (filters, channels, h, w).
        bias (Tensor, optional): Shape (filters,).
        mask (Tensor): Bool of the weight's shape: the places that are kept.
        geometry (Geometry): Stride, padding and dilation.

    Attributes:
        relu (bool): Whether negative outputs become zero.
    """

    values: Tensor
    bias: Tensor | None
    relu = False

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        mask: Tensor,
        geometry: Geometry,
    ) -> None:
        super().__init__()
        self.filters, self.channels = weight.shape[:2]
        self.shape = weight.shape
        self.geometry = geometry
        pattern = make_pattern(mask, geometry, gradients=False)
        for name, part in zip(PATTERN, pattern, strict=True):
            self.register_buffer(name, part)
        flat = weight.detach().reshape(-1)
        self.register_buffer('values', flat[pattern[-1].long()])
        self.register_buffer('bias', None if bias is None else bias.detach())

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Convolve.

        Args:
            x (Tensor): Float32 of shape (images, channels, height, width).
            residual (Tensor, optional): Added before the ReLU, of any shape
                that can be.

        Returns:
            Tensor: Shape (images, filters, out height, out width).
        """
        size = self.geometry.out_size(x.shape[-2], x.shape[-1])
        shape = (x.shape[0], self.filters, *size)
        spread = residual is not None and residual.shape != shape
        out = sparse_conv2d_fused(
            x,
            self.values,
            self.bias,
            None if spread else residual,
            self.relu and not spread,
            [getattr(self, name) for name in PATTERN],
            self.geometry.numbers(),
            self.filters,
        )
        if spread:
            out = out + residual
        return out.relu() if spread and self.relu else out

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
