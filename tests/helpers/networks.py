"""Networks with zeros, and comparing what two of them compute."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from sift_mm.layers import Wide


def tensors(found: Any) -> list[Tensor]:
    """Return all tensors of nested containers."""
    if isinstance(found, Tensor):
        return [found]
    parts = found.values() if isinstance(found, dict) else found
    return [tensor for part in parts for tensor in tensors(part)]


@torch.no_grad()
def sparsified(model: nn.Module, density: float = 0.2) -> nn.Module:
    """Return the network in eval mode with zeros and trained statistics."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.1)
    for weight in model.parameters():
        if weight.ndim in (2, 4) and min(weight.shape[:2]) > 1:
            weight *= torch.rand_like(weight) < density
    model.eval()  # OpenMMLab's backbones return nothing here.
    return model


def assert_equal(
    model: Callable, other: Callable, x: Tensor | None = None
) -> None:
    x = torch.randn(2, 4, 6, 8) if x is None else x
    expected, found = tensors(model(x.clone())), tensors(other(x.clone()))
    for one, two in zip(expected, found, strict=True):
        assert one.dtype == two.dtype and one.device == two.device
        # Weight norm of a row of zeros is not a number.
        scale = float(one.nan_to_num().abs().max()) if one.numel() else 0
        torch.testing.assert_close(
            two, one, rtol=1e-4, atol=1e-5 * scale, equal_nan=True
        )


def put_dense(dense: nn.Module, wide: nn.Module) -> None:
    """Copy a dense network's weights into a wide one; zero the rest."""
    state = dict(wide.named_parameters()) | dict(wide.named_buffers())
    layers = tuple(n for n, m in wide.named_modules() if isinstance(m, Wide))
    with torch.no_grad():
        for name, old in dense.state_dict(keep_vars=True).items():
            new = state.get(name)
            if new is None:  # The second name of a tied weight.
                continue
            if name.startswith(layers):
                new.zero_()
            new[tuple(slice(size) for size in old.shape)] = old


def make_block(
    name: str,
    run: Callable[..., Any],
    kind: type[nn.Module] = nn.Module,
    **layers: nn.Module,
) -> Any:
    """Build a module of a new class with this forward method."""
    made: Any = type(name, (kind,), dict(forward=run))()
    for key, layer in layers.items():
        made.add_module(key, layer)
    return made


def vit(width: int = 32) -> nn.Module:
    """Return torchvision's vision transformer with two layers."""
    size = dict(image_size=32, patch_size=8, hidden_dim=width)
    return torchvision.models.VisionTransformer(
        **size, mlp_dim=4 * width, num_layers=2, num_heads=2, num_classes=10
    )


def swin() -> nn.Module:
    """Return torchvision's Swin transformer with two stages."""
    return torchvision.models.SwinTransformer(
        [4, 4], 16, [2, 2], [2, 2], [4, 4], num_classes=10
    )


class Block(nn.Module):
    """A block with a layer of each kind that is changed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(3, 1, 1)
        self.linear = nn.Linear(8, 8)
        self.branch = nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(4, 4, 3, padding=1),
                norm=nn.BatchNorm2d(4),
                relu=nn.ReLU(inplace=True),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(x)
        out = self.norm(out)
        out += x
        out = self.relu(out)
        return self.linear(self.pool(out)) + self.branch(x)


def block() -> Any:
    return sparsified(Block(), 0.4)
