"""A convolution of the operators with its dense reference."""

from torch import Tensor, nn

from helpers.random_convolutions import (
    Case,
    pattern_of,
)
from sift_mm.kernels import (
    sparse_conv2d,
    sparse_conv2d_fused,
)
from sift_mm.kernels.ops import input_gradient, weight_gradient


class Layer(nn.Module):
    """Layer around the operators, and its dense reference."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.x, self.mask, weight = case.draw()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(weight.sum((1, 2, 3)))
        self.pattern = pattern_of(case, self.mask)
        self.numbers = case.geometry.numbers()
        self.case = case

    def forward(self, x: Tensor) -> Tensor:
        return sparse_conv2d(
            x, self.weight, self.bias, self.pattern, self.numbers
        )

    def fused(
        self, x: Tensor, residual: Tensor | None = None, relu: bool = False
    ) -> Tensor:
        values = self.weight.detach().view(-1)[self.pattern[2]]
        return sparse_conv2d_fused(
            x,
            values,
            self.bias.detach(),
            residual,
            relu,
            self.pattern[:3],
            self.numbers,
            len(self.weight),
        )

    def dense(self, x: Tensor) -> Tensor:
        weight = self.weight * self.mask
        return self.case.dense(x, weight) + self.bias[:, None, None]

    def gradients(self, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        fixed = x, self.weight.detach(), self.pattern, self.numbers
        return input_gradient(grad, *fixed), weight_gradient(grad, *fixed)
