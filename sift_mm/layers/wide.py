"""Sparse Wide inside a block: wider hidden widths, the same interface.

A feed-forward pair or a residual block is a chain of layers, each reading
what the one before gives. Its first input and its last output belong to the
network around it; what is between can be made wider.
"""

import copy
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from sift_mm.errors import Mistake
from sift_mm.flops import FlopCount, count_call, on_meta
from sift_mm.flops.isoflop import inner_expansion
from sift_mm.layers.composite import draw
from sift_mm.layers.family import Family, register
from sift_mm.layers.member import check_share
from sift_mm.layers.plain import (
    Change,
    channels_in,
    is_depthwise,
    make_like,
    plain_type,
    size_of,
    weight_scale,
)

SHORTCUTS = ('downsample', 'shortcut')
# Of mmcv: a layer with its norm and activation, or two of them.
GROUPS = ('ConvModule', 'DepthwiseSeparableConvModule')
# Who holds one runs its modules, in whatever order.
LISTS = (nn.Sequential, nn.ModuleList)
# What a norm that can be rebuilt calls its width.
NORMS = {
    nn.BatchNorm1d: 'num_features',
    nn.BatchNorm2d: 'num_features',
    nn.BatchNorm3d: 'num_features',
    nn.SyncBatchNorm: 'num_features',
    nn.GroupNorm: 'num_channels',
    nn.LayerNorm: 'normalized_shape',
}


class Wide(nn.Module):
    """A dense layer that was widened: sparse, otherwise as it was.

    Attributes:
        density (float): Share of active weights that masks are to leave.
        std (float): Standard deviation of its first weights.
    """

    density: float
    std: float

    def sparse_parameter_names(self) -> list[str]:
        """The weight."""
        return ['weight']

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw the weight anew; a bias stays."""
        weight: Any = self.weight
        weight.normal_(0, self.std)


class WideLinear(Wide, nn.Linear):
    """A linear layer of a widened chain."""


class WideConv1d(Wide, nn.Conv1d):
    """A 1d convolution of a widened chain."""


class WideConv2d(Wide, nn.Conv2d):
    """A 2d convolution of a widened chain."""


class WideConv3d(Wide, nn.Conv3d):
    """A 3d convolution of a widened chain."""


WIDE = {
    nn.Linear: WideLinear,
    nn.Conv1d: WideConv1d,
    nn.Conv2d: WideConv2d,
    nn.Conv3d: WideConv3d,
}


@register
class WideFamily(Family):
    """The same layers, wider."""

    name = 'wide'
    widens = True
    composite = False


@dataclass
class Link:
    """A layer of a chain, and what is as wide between it and the next.

    Its followers are norms and depthwise convolutions; names are those within
    the block.
    """

    name: str
    layer: Any
    followers: dict[str, nn.Module] = field(default_factory=dict)


def follower_width(module: Any) -> int | None:
    """Width of what can be rebuilt at another; None for other modules."""
    if type(module) is nn.LayerNorm:
        shape = module.normalized_shape
        return shape[0] if len(shape) == 1 else None
    if type(module) in NORMS:
        return getattr(module, NORMS[type(module)])
    if plain_type(module) and is_depthwise(module):
        # One that gives several channels for each that it reads is no mere
        # follower.
        same = module.in_channels == module.out_channels
        return module.out_channels if same else None
    return _vector_width(module)


def _vector_width(module: nn.Module) -> int | None:
    """Width of a module that holds some numbers for each channel alone.

    As response norms, scales, PReLU and frozen batch norms do.
    """
    if isinstance(module, (_ConvNd, nn.Linear, nn.Bilinear, nn.Embedding)):
        return None
    own, inside = (
        [*module.parameters(deep), *module.buffers(deep)]
        for deep in (False, True)
    )
    shapes = [t.shape for t in own if t.numel() > 1]
    widths = {max(shape) for shape in shapes}
    vectors = all(max(shape) == shape.numel() for shape in shapes)
    if len(inside) > len(own) or not vectors or len(widths) != 1:
        return None
    return widths.pop()


def _wider_vectors(module: nn.Module, width: int) -> nn.Module:
    """A copy whose numbers are repeated for channels to come."""
    old = _vector_width(module)
    assert old is not None
    new = copy.deepcopy(module)
    places = torch.arange(width) % old
    owns: list[dict[str, Any]] = [new._parameters, new._buffers]
    for own in owns:
        for name, tensor in own.items():
            if tensor is None or tensor.numel() != old:
                continue
            longer = tensor.detach().flatten()[places.to(tensor.device)]
            shape = [width if size == old else size for size in tensor.shape]
            own[name] = longer.view(shape)
            if isinstance(tensor, nn.Parameter):
                own[name] = nn.Parameter(own[name], tensor.requires_grad)
    for name, value in list(vars(new).items()):
        if type(value) is int and value == old:
            setattr(new, name, width)
        elif isinstance(value, tuple) and value == (old,):
            setattr(new, name, (width,))
    return new


def wider_follower(module: Any, width: int) -> nn.Module:
    """A new norm or depthwise convolution like another one, of a width."""
    if plain_type(module):
        bias = module.bias is not None
        new: Any = make_like(module, width, width, bias, groups=width)
        draw(new, weight_scale(module) ** 2)
        return new
    if type(module) not in NORMS:
        return _wider_vectors(module, width)
    options = {name: getattr(module, name) for name in module.__constants__}
    if isinstance(module, nn.LayerNorm):
        options['bias'] = module.bias is not None
    new = type(module)(**options | {NORMS[type(module)]: width})
    like = next(module.parameters(), None)
    return new if like is None else new.to(like.device, like.dtype)


def own_modules(
    block: nn.Module, prefix: str = ''
) -> Iterator[tuple[str, nn.Module]]:
    """Modules of a block itself, and of what only groups some of them.

    That is a Sequential, a list, or a convolution with its norm, as mmcv has
    it; not a shortcut.
    """
    for name, child in block.named_children():
        if not _is_group(child):
            yield f'{prefix}{name}', child
        elif name not in SHORTCUTS:
            yield from own_modules(child, f'{prefix}{name}.')


def _is_group(module: nn.Module) -> bool:
    """Whether a module may do no more than run its children in turn."""
    if isinstance(module, LISTS) or type(module).__name__ in GROUPS:
        return True
    children: list[Any] = [
        child
        for child in module.children()
        if any(True for _ in child.parameters())
    ]
    first, *rest = children or [module]
    return (
        bool(rest)
        and bool(plain_type(first))
        and all(follower_width(m) == first.weight.shape[0] for m in rest)
    )


def find_chains(
    block: nn.Module, allowed: Collection[nn.Module]
) -> list[list[Link]]:
    """Chains of two or more allowed layers, by the order of registration.

    What looks like chains: whether they are shows when the block runs.
    """
    chains: list[list[Link]] = [[]]
    for name, module in own_modules(block):
        last = chains[-1][-1] if chains[-1] else None
        if module in allowed:
            if last and channels_in(module) not in _given(last.layer):
                chains.append([])
            chains[-1].append(Link(name, module))
        elif last and follower_width(module) in _given(last.layer):
            last.followers[name] = module
        elif last and (link := _earlier(chains[-1], module)):
            link.followers[name] = module
        elif any(True for _ in module.parameters()):
            chains.append([])
    return [chain for chain in chains if len(chain) > 1]


def _given(layer: Any) -> tuple[int, ...]:
    """Widths that may be read behind a layer.

    Of a linear one half of its own too, where one half gates the other.
    """
    width = layer.weight.shape[0]
    halves = isinstance(layer, nn.Linear) and width % 2 == 0
    return (width, width // 2) if halves else (width,)


def _earlier(chain: list[Link], module: nn.Module) -> Link | None:
    """The one layer of a chain that a norm registered behind it may follow."""
    width = follower_width(module)
    found = [link for link in chain if link.layer.weight.shape[0] == width]
    return found[0] if len(found) == 1 else None


def widen(
    block: nn.Module, chain: list[Link], sparsity: float
) -> tuple[Change, float, float]:
    """Make the inside of a chain wider, at equal FLOPs under masks.

    Layers are drawn normal, such that their outputs under masks have the
    variance that those of the old ones have. The last keeps its bias, others
    start at 0.

    Args:
        block (nn.Module): The block, changed in place.
        chain (list[Link]): One of its chains.
        sparsity (float): Share of zero weights of the masks to come.

    Returns:
        tuple[Change, float, float]: What was replaced; FLOPs of the new
        layers under masks over those of the old ones, with the depthwise
        convolutions between; and the share of the old layers' FLOPs that
        wider depthwise convolutions leave to the new ones.

    Raises:
        ValueError: If the block's interface would change, or it cannot be
            told; the block is then as it was.
    """
    kind = type(block).__name__
    trial = on_meta(block)
    inputs, before = _run(trial, chain)
    flops = {link.name: before.of(f'{link.name}.weight') for link in chain}
    between = [name for link in chain[:-1] for name in link.followers]
    depthwise = sum(before.of(f'{name}.weight') for name in between)
    new = _widths(chain, flops, depthwise, sparsity)
    try:
        shapes = _output_shapes(trial, inputs)
    except Exception as error:
        raise Mistake(
            f'{kind} does not run in training mode on a tensor alone ({error})'
        ) from None
    _put_wider(trial, chain, new, 1 - sparsity)
    try:
        changed = _output_shapes(trial, inputs) != shapes
        after = count_call(trial, *inputs)
    except Exception as error:
        raise Mistake(
            f'{kind} does not run with a wider inside, as something in it '
            f'keeps its width ({error})'
        ) from None
    if changed:
        raise Mistake(f'a wider inside changes the output of {kind}')
    wide = (1 - sparsity) * sum(after.of(f'{name}.weight') for name in flops)
    grown = sum(after.of(f'{name}.weight') for name in between)
    dense = sum(flops.values())
    ratio = (wide + grown) / (dense + depthwise)
    left = 1 - (grown - depthwise) / dense
    check_share(ratio)
    return _put_wider(block, chain, new, 1 - sparsity), ratio, left


def _output_shapes(block: nn.Module, inputs: tuple[Any, ...]) -> list[Any]:
    """Shapes of all outputs, in training and in evaluation."""
    shapes = []
    for mode in (True, False):
        block.train(mode)
        shapes += [
            getattr(leaf, 'shape', None)
            for leaf in tree_leaves(block(*inputs))
        ]
    return shapes


def _run(
    block: nn.Module, chain: list[Link]
) -> tuple[tuple[Any, ...], FlopCount]:
    """Inputs that a block on the meta device takes, and what they cost.

    A tensor alone; or tokens with the height and width that they are of, as
    feed-forward blocks with a convolution in them take them; or a list of
    tensors, as densely connected blocks do.
    """
    widths = {channels_in(chain[0].layer)}
    widths |= {
        channels_in(module)
        for _, module in own_modules(block)
        if plain_type(module)
    }
    reason: Exception | None = None
    # A block that splits its channels, as ShuffleNet's, reads twice as many.
    for channels in (*widths, *(2 * width for width in widths)):
        shapes = [
            (2, 16, channels),
            (2, channels, 32, 32),
            (2, 16, 16, channels),
            (2, channels, 32),
            (2, channels, 16, 16, 16),
        ]
        if channels <= 4:  # A network that reads images of one size.
            shapes.append((2, channels, 224, 224))
        alone = [torch.empty(shape, device='meta') for shape in shapes]
        trials: list[tuple[Any, ...]] = [(tensor,) for tensor in alone]
        trials += [(alone[0], (4, 4)), ([alone[1]],)]
        for inputs in trials:
            try:
                count = count_call(block, *inputs)
            except Exception as error:
                reason = reason or error
                continue
            if all(count.of(f'{link.name}.weight') for link in chain):
                return inputs, count
    raise Mistake(
        f'{type(block).__name__} does not run on a tensor alone, '
        'so that it cannot be told whether its interface would '
        f'stay ({reason})'
    )


def _widths(
    chain: list[Link],
    flops: dict[str, int],
    depthwise: int,
    sparsity: float,
) -> dict[str, int]:
    """New output width of each layer but the last.

    Rounded to a multiple of the groups that convolutions and norms divide a
    width into.
    """
    edge = flops[chain[0].name] + flops[chain[-1].name]
    inner = sum(flops.values()) - edge
    factor = inner_expansion(edge, inner, sparsity, depthwise)
    groups = [getattr(link.layer, 'groups', 1) for link in chain]
    groups += [
        getattr(norm, 'num_groups', 1)
        for link in chain[:-1]
        for norm in link.followers.values()
    ]
    groups += [
        link.layer.weight.shape[0] // channels_in(reader.layer)
        for link, reader in pairwise(chain)
    ]
    step = math.lcm(*groups)
    new = {}
    for link in chain[:-1]:
        old = link.layer.weight.shape[0]
        new[link.name] = round(factor * old / step) * step
        if new[link.name] <= old:
            raise Mistake(
                f'{factor:.3g} times its {old} channels is no wider multiple '
                f'of the groups, {step}'
            )
    return new


def _put_wider(
    block: nn.Module, chain: list[Link], new: dict[str, int], density: float
) -> Change:
    change = Change(block, type(block).__name__)
    d_in: int | None = None
    readers = [*chain[1:], None]
    for link, reader in zip(chain, readers, strict=True):
        # By name: the block may be a copy of the chain's.
        layer: Any = block.get_submodule(link.name)
        d_out = new.get(link.name)
        kind: Any = plain_type(layer)
        wide: Any = make_like(
            layer, d_in, d_out, layer.bias is not None, kind=WIDE[kind]
        )
        variance = size_of(layer)[0] * weight_scale(layer) ** 2
        variance /= size_of(wide)[0] * density
        draw(wide, variance)
        wide.std = variance**0.5
        if not d_out and layer.bias is not None:
            wide.bias = layer.bias
        wide.density = density
        change.put(link.name, wide)
        if not d_out or reader is None:
            continue
        old = link.layer.weight.shape[0]
        for name in link.followers:
            follower = block.get_submodule(name)
            width = (follower_width(follower) or old) * d_out // old
            change.put(name, wider_follower(follower, width))
        d_in = channels_in(reader.layer) * d_out // old
    return change
