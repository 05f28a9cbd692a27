"""The dense layers that Sparse-IFT replaces, and how to make their like."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

Norm = Callable[[int], nn.Module]

PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
}
SHAPE = ('kernel_size', 'stride', 'padding', 'dilation', 'padding_mode')
# Modules of subclasses that compute what PyTorch's layers do: mmcv's differ
# for empty inputs only.
_SAME = ('mmcv.cnn.bricks.wrappers', f'{__package__}.wide')


def plain_type(layer: nn.Module) -> type[nn.Module] | None:
    """PyTorch's class that a layer behaves as; None if it is no such layer.

    By exact type: a subclass may use its weight in another way.
    """
    kind = type(layer)
    if kind.__module__ in _SAME:
        kind = kind.__bases__[-1]
    return kind if kind in PLAIN else None


def size_of(layer: nn.Module) -> tuple[int, int, int]:
    """``k * k * d_in / groups``, ``d_out`` and groups of a dense layer."""
    weight: Any = layer.weight
    groups: Any = getattr(layer, 'groups', 1)
    return weight[0].numel(), weight.shape[0], groups


def make_like(
    layer: Any,
    d_in: int | None = None,
    d_out: int | None = None,
    bias: bool = False,
    pointwise: bool = False,
    kind: type[nn.Module] | None = None,
    groups: int | None = None,
) -> nn.Module:
    """A new layer of a layer's kind, on its device, in its precision.

    It reads ``d_in`` channels or features and gives ``d_out``; these and the
    groups are the layer's where they are None, and its kind is PyTorch's own.
    A pointwise convolution has kernel and stride 1, and no padding. Weights
    are as the kind draws them.
    """
    new: Any = kind or plain_type(layer)
    where = dict(device=layer.weight.device, dtype=layer.weight.dtype)
    d_in, d_out = d_in or channels_in(layer), d_out or layer.weight.shape[0]
    if isinstance(layer, nn.Linear):
        return new(d_in, d_out, bias, **where)
    shape = {name: getattr(layer, name) for name in SHAPE}
    if pointwise:
        shape = dict(kernel_size=1)
    groups = groups or layer.groups
    made = new(d_in, d_out, groups=groups, bias=bias, **shape, **where)
    if layer.weight.dim() == 4 and not layer.weight.is_contiguous():
        made.to(memory_format=torch.channels_last)
    return made


def default_norm(layer: nn.Module) -> Norm:
    """Number of channels to the norm for inner outputs of a layer's kind.

    Batch norm for a convolution, layer norm for a linear layer, whose
    channels come last.
    """
    weight: Any = layer.weight
    kind = BATCH_NORMS.get(plain_type(layer), nn.LayerNorm)  # type: ignore
    return lambda n: kind(n, device=weight.device, dtype=weight.dtype)


@torch.no_grad()
def weight_scale(layer: nn.Module) -> float:
    """Root mean square of a layer's weights as they are now.

    That of Kaiming's initialisation where they have no values yet.
    """
    weight: Any = layer.weight
    if weight.is_meta or not weight.any():
        return kaiming_scale(layer)
    return float(weight.float().square().mean().sqrt())


def kaiming_scale(layer: nn.Module) -> float:
    """Standard deviation of Kaiming's normal weights, fan_out, ReLU."""
    weight: Any = layer.weight
    return math.sqrt(2 / (weight.shape[0] * weight[0, 0].numel()))


def channels_in(layer: Any) -> int:
    """Channels or features that a dense layer reads."""
    return layer.weight.shape[1] * getattr(layer, 'groups', 1)


def is_depthwise(layer: Any) -> bool:
    """Whether each output of a convolution reads one channel."""
    return getattr(layer, 'groups', 1) > 1 and layer.weight.shape[1] == 1


def put(module: nn.Module, name: str, new: nn.Module) -> None:
    """Replace a submodule wherever it is registered.

    Mode and frozen parameters stay what they are.
    """
    old = module.get_submodule(name)
    new.train(old.training)
    if not all(p.requires_grad for p in old.parameters()):
        new.requires_grad_(False)
    _exchange(module, old, new)


def _exchange(module: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in list(module.modules()):
        for key, child in parent._modules.items():
            if child is old:
                parent._modules[key] = new


@dataclass
class Change:
    """Modules that are replaced together, by their names in an owner.

    Args:
        owner (nn.Module): Holds the modules.
        kind (str): Class of the module that they are part of.
        before (dict[str, nn.Module]): What was there.
        after (dict[str, nn.Module]): What is in their place.
        replaced (dict[str, Any]): Records of the layers among them, by their
            full names.
    """

    owner: nn.Module
    kind: str
    before: dict[str, nn.Module] = field(default_factory=dict)
    after: dict[str, nn.Module] = field(default_factory=dict)
    replaced: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Full names of the layers."""
        return tuple(self.replaced)

    def put(self, name: str, new: nn.Module) -> None:
        """Replace a module, see :func:`put`."""
        self.before.setdefault(name, self.owner.get_submodule(name))
        self.after[name] = new
        put(self.owner, name, new)

    def undo(self) -> None:
        """Put back what was there."""
        for name, module in self.before.items():
            _exchange(self.owner, self.after[name], module)

    def redo(self) -> None:
        """Replace it once more."""
        for name, module in self.after.items():
            _exchange(self.owner, self.before[name], module)
