"""Chains of layers whose inner widths belong to one block alone.

A feed-forward pair or a residual block is a chain: each layer reads the output
of the layer before. Its first input and last output belong to the network
around it; the widths between can grow.
"""

import copy
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from sift_mm.layers.composite import initialize
from sift_mm.layers.plain import (
    channels_in,
    is_depthwise,
    make_like,
    plain_type,
    size_of,
    weight_scale,
)

SHORTCUTS = ('downsample', 'shortcut')
# Classes of mmcv: a layer with its norm and activation, or two of them.
GROUPS = ('ConvModule', 'DepthwiseSeparableConvModule')
# Containers whose owner may run the modules in any order.
LISTS = (nn.Sequential, nn.ModuleList)


@dataclass
class Link:
    """Layer of a chain, with the norms and depthwise layers behind it.

    Args:
        name (str): Name of the layer within the block.
        layer (nn.Module): The layer.
        gates (dict[str, nn.Module]): Layers of the same shape and input, whose
            outputs the layer's are combined with, by name within the block.
        followers (dict[str, nn.Module]): Modules of the layer's output width
            between it and the next layer, by name within the block.
    """

    name: str
    layer: Any
    gates: dict[str, Any] = field(default_factory=dict)
    followers: dict[str, nn.Module] = field(default_factory=dict)

    @property
    def layers(self) -> dict[str, Any]:
        """The layer and its gates, by name within the block."""
        return {self.name: self.layer, **self.gates}

    @property
    def width(self) -> int:
        """Number of output channels."""
        return size_of(self.layer)[1]


@dataclass(frozen=True)
class Place:
    """Chain at its place in a network.

    Args:
        block (str): Name of the block in the network.
        chain (list[Link]): Layers of the chain, by name within the block.
    """

    block: str
    chain: list[Link]

    def names(self) -> tuple[str, ...]:
        """Return the names of the layers in the network."""
        prefix = f'{self.block}.' if self.block else ''
        return tuple(
            f'{prefix}{name}' for link in self.chain for name in link.layers
        )

    def pairs(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Return each link's layers with those of the next, by full name."""
        places = [Place(self.block, [link]).names() for link in self.chain]
        layers = [link.layers.values() for link in self.chain]
        return list(pairwise(map(dict, map(zip, places, layers))))


def find_chains(
    block: nn.Module, allowed: Collection[nn.Module], gated: bool = False
) -> list[list[Link]]:
    """Return the candidate chains of a block, by order of registration.

    Only a run of the block shows whether they are chains.

    Args:
        block (nn.Module): The block.
        allowed (Collection[nn.Module]): Layers that may be widened.
        gated (bool): Whether linear layers of one shape form one link, as
            Llama's ``gate_proj`` and ``up_proj`` do.
    """
    chains: list[list[Link]] = [[]]
    for name, module in own_modules(block):
        last = chains[-1][-1] if chains[-1] else None
        if module in allowed:
            if gated and (link := _link_like(chains[-1], module)):
                link.gates[name] = module
                continue
            if last and channels_in(module) not in _readable_widths(last):
                chains.append([])
            chains[-1].append(Link(name, module))
        elif last and follower_width(module) in _readable_widths(last):
            last.followers[name] = module
        elif last and (link := _only_link_of_width(chains[-1], module)):
            link.followers[name] = module
        elif any(True for _ in module.parameters()):
            chains.append([])
    return [chain for chain in chains if len(chain) > 1]


def own_modules(
    block: nn.Module, prefix: str = ''
) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of a block and of its plain containers.

    A container is a Sequential, a list or mmcv's ConvModule, not a shortcut.
    """
    for name, child in block.named_children():
        if not _is_container(child):
            yield f'{prefix}{name}', child
        elif name not in SHORTCUTS:
            yield from own_modules(child, f'{prefix}{name}.')


def _is_container(module: nn.Module) -> bool:
    """Return whether a module may only run its children in turn."""
    if isinstance(module, LISTS) or type(module).__name__ in GROUPS:
        return True
    children: list[Any] = [
        child
        for child in module.children()
        if any(True for _ in child.parameters())
    ]
    first, *rest = children or [module]
    if not plain_type(first):
        return False
    if not rest:  # BERT's ``intermediate`` is a linear layer alone.
        return bool(children) and first.weight.dim() == 2
    return all(follower_width(m) == size_of(first)[1] for m in rest)


def _readable_widths(link: Link) -> tuple[int, ...]:
    """Return the possible input widths of the next layer.

    Half the width of a linear layer is possible: one half may gate the other.
    """
    halves = isinstance(link.layer, nn.Linear) and link.width % 2 == 0
    return (link.width, link.width // 2) if halves else (link.width,)


def _link_like(chain: list[Link], module: nn.Module) -> Link | None:
    """Return the link of a linear layer of the same kind and shape."""
    for link in chain:
        same = plain_type(link.layer) is plain_type(module)
        if same and link.layer.weight.dim() == 2:
            if size_of(link.layer) == size_of(module):
                return link
    return None


def _only_link_of_width(chain: list[Link], module: nn.Module) -> Link | None:
    """Return the link of a norm's width, if it is the only one."""
    width = follower_width(module)
    found = [link for link in chain if link.width == width]
    return found[0] if len(found) == 1 else None


def chain_parts(chain: list[Link]) -> int:
    """Return the number of equal parts of the inner widths.

    Convolution groups and the halves of a gate have to stay whole.
    """
    groups = [getattr(link.layer, 'groups', 1) for link in chain]
    groups += [
        link.width // channels_in(reader.layer)
        for link, reader in pairwise(chain)
    ]
    return math.lcm(*groups)


def follower_width(module: Any) -> int | None:
    """Return the width of a module that can be rebuilt wider, else None."""
    if not (plain_type(module) and is_depthwise(module)):
        return _vector_width(module)
    # With a channel multiplier it is no follower.
    same = module.in_channels == module.out_channels
    return module.out_channels if same else None


def _vector_width(module: nn.Module) -> int | None:
    """Return the length of a module's vectors, None for other modules.

    Norms, scales, PReLU and frozen batch norms hold vectors of one length.
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


def wider_follower(module: Any, width: int) -> nn.Module:
    """Build a norm or depthwise convolution like another one, but wider."""
    if plain_type(module):
        bias = module.bias is not None
        new: Any = make_like(module, width, width, bias, groups=width)
        initialize(new, weight_scale(module) ** 2)
        return new
    new = _wider_vectors(module, width)
    if isinstance(new, (_NormBase, nn.GroupNorm, nn.LayerNorm)):
        new.reset_parameters()
    return new


def _wider_vectors(module: nn.Module, width: int) -> nn.Module:
    """Copy a module with its vectors repeated up to a width."""
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
