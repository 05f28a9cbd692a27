"""Dense layers that Sparse-IFT replaces, and new ones of their kind."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sift_mm.orientation import inputs_first, is_conv1d

Norm = Callable[[int], nn.Module]

PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = {
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
}
SHAPE = ('kernel_size', 'stride', 'padding', 'dilation', 'padding_mode')
# Modules whose subclasses compute the same as PyTorch's layers: mmcv's differ
# for empty inputs only.
_SAME = ('mmcv.cnn.bricks.wrappers', f'{__package__}.wide')


def plain_type(layer: nn.Module) -> type[nn.Module] | None:
    """Return PyTorch's class of a dense layer, None for another module.

    The type has to be exact: a subclass may use its weight in another way.
    Transformers' Conv1D, a linear layer, counts as plain.
    """
    kind = type(layer)
    if kind.__module__ in _SAME:
        kind = kind.__bases__[-1]
    return kind if kind in PLAIN or is_conv1d(kind) else None


def filters_of(layer: Any) -> Tensor:
    """Return a layer's weight with its filters as rows."""
    return layer.weight.t() if inputs_first(layer) else layer.weight


def size_of(layer: nn.Module) -> tuple[int, int, int]:
    """Return ``k * k * d_in / groups``, ``d_out`` and groups of a layer."""
    weight = filters_of(layer)
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
    """Build a new layer of a layer's kind, device and precision.

    Args:
        layer (nn.Module): The layer.
        d_in (int, optional): Input channels or features; None is the layer's.
        d_out (int, optional): Output channels; None is the layer's.
        bias (bool): Whether the new layer has a bias.
        pointwise (bool): Whether a convolution has kernel and stride 1 and no
            padding.
        kind (type, optional): Class; None is PyTorch's (Linear for a Conv1D
            of transformers), which also initializes the weights.
        groups (int, optional): Groups; None is the layer's.
    """
    new: Any = kind or plain_type(layer)
    where = dict(device=layer.weight.device, dtype=layer.weight.dtype)
    d_in, d_out = d_in or channels_in(layer), d_out or size_of(layer)[1]
    if kind and inputs_first(layer):
        return new(d_out, d_in).to(**where)
    if layer.weight.dim() == 2:
        new = kind or nn.Linear
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
    """Return a constructor of norms for inner outputs, by channels.

    Convolutions get batch norm; linear layers, whose channels come last, get
    layer norm.
    """
    weight: Any = layer.weight
    kind = BATCH_NORMS.get(plain_type(layer), nn.LayerNorm)  # type: ignore
    return lambda n: kind(n, device=weight.device, dtype=weight.dtype)


@torch.no_grad()
def weight_scale(layer: nn.Module) -> float:
    """Return the root mean square of a layer's weights.

    Weights without values yet have that of Kaiming's initialization.
    """
    weight: Any = layer.weight
    if weight.is_meta or not weight.any():
        return kaiming_scale(layer)
    return float(weight.float().square().mean().sqrt())


def kaiming_scale(layer: nn.Module) -> float:
    """Return the standard deviation of Kaiming's weights (fan_out, ReLU)."""
    weight = filters_of(layer)
    return math.sqrt(2 / (weight.shape[0] * weight[0, 0].numel()))


def channels_in(layer: Any) -> int:
    """Return the input channels or features of a dense layer."""
    return filters_of(layer).shape[1] * getattr(layer, 'groups', 1)


def is_depthwise(layer: Any) -> bool:
    """Return whether each output of a convolution reads one channel."""
    return getattr(layer, 'groups', 1) > 1 and layer.weight.shape[1] == 1


def replace(module: nn.Module, name: str, new: nn.Module) -> None:
    """Replace a submodule under all of its names.

    The new module takes over the mode and ``requires_grad``.
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
        owner (nn.Module): Module that holds them.
        kind (str): Class name of the block that they are part of.
        before (dict[str, nn.Module]): Old modules.
        after (dict[str, nn.Module]): New modules.
        replaced (dict[str, Any]): Records of the replaced layers, by their
            full names.
    """

    owner: nn.Module
    kind: str
    before: dict[str, nn.Module] = field(default_factory=dict)
    after: dict[str, nn.Module] = field(default_factory=dict)
    replaced: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Full names of the replaced layers."""
        return tuple(self.replaced)

    def replace(self, name: str, new: nn.Module) -> None:
        """Replace a module, see :func:`replace`."""
        self.before.setdefault(name, self.owner.get_submodule(name))
        self.after[name] = new
        replace(self.owner, name, new)

    def undo(self) -> None:
        """Restore the old modules."""
        for name, module in self.before.items():
            _exchange(self.owner, self.after[name], module)

    def redo(self) -> None:
        """Replace the old modules again."""
        for name, module in self.after.items():
            _exchange(self.owner, self.before[name], module)
