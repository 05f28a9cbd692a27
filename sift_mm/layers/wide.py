"""Sparse Wide inside a block: larger inner widths, the same interface."""

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import nn

from sift_mm.errors import UserError
from sift_mm.flops import FlopCount, count_call, on_meta
from sift_mm.flops.isoflop import inner_expansion
from sift_mm.layers.chains import (
    Link,
    Place,
    chain_parts,
    follower_width,
    own_modules,
    wider_follower,
)
from sift_mm.layers.composite import initialize
from sift_mm.layers.family import Family, check_share, register
from sift_mm.layers.plain import (
    Change,
    channels_in,
    make_like,
    plain_type,
    size_of,
    weight_scale,
)


class Wide(nn.Module):
    """Mixin for a widened dense layer with a sparse weight.

    Attributes:
        density (float): Expected share of active weights.
        std (float): Standard deviation of the initial weights.
    """

    density: float
    std: float

    def sparse_parameter_names(self) -> list[str]:
        """Return the name of the weight."""
        return ['weight']

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw the weight again and keep the bias."""
        weight: Any = self.weight
        weight.normal_(0, self.std)


class WideLinear(Wide, nn.Linear):
    """Linear layer of a widened chain."""


class WideConv1d(Wide, nn.Conv1d):
    """1d convolution of a widened chain."""


class WideConv2d(Wide, nn.Conv2d):
    """2d convolution of a widened chain."""


class WideConv3d(Wide, nn.Conv3d):
    """3d convolution of a widened chain."""


WIDE = {
    nn.Linear: WideLinear,
    nn.Conv1d: WideConv1d,
    nn.Conv2d: WideConv2d,
    nn.Conv3d: WideConv3d,
}


def wide_type(kind: Any) -> Any:
    """Return the wide class of a class of :func:`plain_type`."""
    return WIDE.get(kind) or _wide_conv1d(kind)


@cache
def _wide_conv1d(kind: Any) -> Any:
    """Build the class of a wide Conv1D of transformers."""
    return type('WideConv1D', (Wide, kind), {'__module__': __name__})


def __getattr__(name: str) -> Any:
    if name != 'WideConv1D':
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    # For pickles of whole networks, which find classes by name.
    pytorch_utils = import_module('transformers.pytorch_utils')
    return wide_type(pytorch_utils.Conv1D)


@register
class WideFamily(Family):
    """Family member of the same layers, wider."""

    name = 'wide'
    widens = True
    composite = False


@dataclass(frozen=True)
class Widening:
    """Plan of a wider chain at equal FLOPs.

    Args:
        block (nn.Module): Block of the chain.
        place (Place): The chain, and the block's name in the network.
        widths (dict[str, int]): New output channels of all but the last.
        ratio (float): FLOPs of the new layers under masks divided by those of
            the old layers, with the depthwise convolutions between.
        left (float): Share of the old layers' FLOPs for the new layers; wider
            depthwise convolutions take the rest.
        inputs (tuple): Arguments for the block, on the meta device.
    """

    block: nn.Module
    place: Place
    widths: dict[str, int]
    ratio: float
    left: float
    inputs: tuple[Any, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the layers in the network."""
        return self.place.names()

    @property
    def kind(self) -> str:
        """Class name of the block."""
        return type(self.block).__name__


def plan_widening(block: nn.Module, place: Place, sparsity: float) -> Widening:
    """Plan the widths of a chain, and run the block with them on meta tensors.

    Args:
        block (nn.Module): The block; it does not change.
        place (Place): One of its chains, and its name in the network.
        sparsity (float): Share of zero weights of the masks.

    Raises:
        ValueError: If the block does not run, or no width has the FLOPs.
    """
    kind, chain = type(block).__name__, place.chain
    trial = on_meta(block, norms=False)
    inputs, before = _find_inputs(trial, chain)
    names = [name for link in chain for name in link.layers]
    flops = {
        link.name: sum(before.of(f'{name}.weight') for name in link.layers)
        for link in chain
    }
    between = [name for link in chain[:-1] for name in link.followers]
    depthwise = sum(before.of(f'{name}.weight') for name in between)
    widths = _widths(chain, flops, depthwise, sparsity)
    put_wider(trial, chain, widths, 1 - sparsity)
    try:
        after = count_call(trial, *inputs)
    except Exception as error:
        raise UserError(
            f'{kind} does not run with a wider inside: a part of it has a '
            f'fixed width ({error})'
        ) from None
    wide = (1 - sparsity) * sum(after.of(f'{name}.weight') for name in names)
    grown = sum(after.of(f'{name}.weight') for name in between)
    dense = sum(flops.values())
    ratio = (wide + grown) / (dense + depthwise)
    check_share(ratio)
    left = 1 - (grown - depthwise) / dense
    return Widening(block, place, widths, ratio, left, inputs)


class _LocalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm of any number of dimensions, in one process."""

    def _check_input_dim(self, input: torch.Tensor) -> None:
        pass


def localize_norms(copied: nn.Module) -> None:
    """Make the synchronized batch norms of a copy run on any device."""
    for module in copied.modules():
        if type(module) is nn.SyncBatchNorm:
            module.__class__ = _LocalBatchNorm  # type: ignore[assignment]


def _find_inputs(
    block: nn.Module, chain: list[Link]
) -> tuple[tuple[Any, ...], FlopCount]:
    """Find inputs that a block on the meta device takes, and its FLOPs.

    Inputs are one tensor; tokens with height and width, for feed-forward
    blocks with a convolution; tokens without an attention mask; a list of
    tensors, for densely connected blocks; or token ids.
    """
    widths = {channels_in(chain[0].layer)}
    widths |= {
        channels_in(module)
        for _, module in own_modules(block)
        if plain_type(module)
    }
    reason: Exception | None = None
    ids = torch.zeros((2, 16), dtype=torch.int64, device='meta')
    # ShuffleNet's blocks split their channels: they read twice as many.
    for channels in (*widths, *(2 * width for width in widths)):
        shapes = [
            (2, 16, channels),
            (2, channels, 32, 32),
            (2, 16, 16, channels),
            (2, channels, 32),
            (2, channels, 16, 16, 16),
        ]
        if channels <= 4:  # Some networks read images of one size.
            shapes.append((2, channels, 224, 224))
        alone = [torch.empty(shape, device='meta') for shape in shapes]
        trials: list[tuple[Any, ...]] = [(tensor,) for tensor in alone]
        trials += [(alone[0], (4, 4)), (alone[0], None)]
        trials += [([alone[1]],), (ids,)]
        for inputs in trials:
            try:
                count = count_call(block, *inputs)
            except Exception as error:
                reason = reason or error
                continue
            names = (name for link in chain for name in link.layers)
            if all(count.of(f'{name}.weight') for name in names):
                return inputs, count
    raise UserError(
        f'{type(block).__name__} does not run on a tensor alone, '
        f'so its interface cannot be checked ({reason})'
    )


def _widths(
    chain: list[Link], flops: dict[str, int], depthwise: int, sparsity: float
) -> dict[str, int]:
    """Return the new output width of each layer but the last.

    Widths are rounded to whole groups of the convolutions that divide them.
    """
    edge = flops[chain[0].name] + flops[chain[-1].name]
    inner = sum(flops.values()) - edge
    factor = inner_expansion(edge, inner, sparsity, depthwise)
    step = chain_parts(chain)
    widths = {}
    for link in chain[:-1]:
        width = round(factor * link.width / step) * step
        if width <= link.width:
            raise UserError(
                f'{factor:.3g} times its {link.width} channels is no wider '
                f'multiple of the groups, {step}'
            )
        widths[link.name] = width
    return widths


def put_wider(
    block: nn.Module, chain: list[Link], widths: dict[str, int], density: float
) -> Change:
    """Replace the layers of a chain and their followers by wider ones.

    Weights are normal: under masks, outputs keep their variance. The last
    layer keeps its bias, other biases start at 0.

    Args:
        block (nn.Module): The block, or a copy of it; changed in place.
        chain (list[Link]): One of its chains.
        widths (dict[str, int]): Output channels of all layers but the last.
        density (float): Share of active weights of the masks.
    """
    change = Change(block, type(block).__name__)
    d_in: int | None = None
    for link, reader in zip(chain, [*chain[1:], None], strict=True):
        d_out = widths.get(link.name)
        for name in link.layers:
            # By name: the block may be a copy.
            layer = block.get_submodule(name)
            change.replace(name, _wider_layer(layer, d_in, d_out, density))
        if not d_out or reader is None:
            continue
        for name in link.followers:
            follower = block.get_submodule(name)
            width = follower_width(follower) or link.width
            width = width * d_out // link.width
            change.replace(name, wider_follower(follower, width))
        d_in = channels_in(reader.layer) * d_out // link.width
    return change


def _wider_layer(
    layer: Any, d_in: int | None, d_out: int | None, density: float
) -> nn.Module:
    """Build a wide layer; without ``d_out`` it has the layer's bias."""
    kind, bias = wide_type(plain_type(layer)), layer.bias is not None
    wide: Any = make_like(layer, d_in, d_out, bias, kind=kind)
    variance = size_of(layer)[0] * weight_scale(layer) ** 2
    variance /= size_of(wide)[0] * density
    initialize(wide, variance)
    wide.std = variance**0.5
    if not d_out and bias:
        wide.bias = layer.bias
    wide.density = density
    return wide
