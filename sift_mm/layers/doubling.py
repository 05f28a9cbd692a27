"""Copies of networks with random weights and doubled inner widths."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map_only

from sift_mm.layers.chains import Place, chain_parts
from sift_mm.layers.plain import filters_of
from sift_mm.layers.wide import localize_norms, put_wider

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@torch.no_grad()
def double_chain(network: nn.Module, place: Place, reads_new: bool) -> None:
    """Double the inner widths of a chain and keep its weights.

    Every second new channel is zero, the others are random.

    Args:
        network (nn.Module): Network of the chain, changed in place.
        place (Place): The chain and its place.
        reads_new (bool): Whether old channels read the new ones.
    """
    block = network.get_submodule(place.block)
    chain = place.chain
    parts = chain_parts(chain)
    widths = {link.name: 2 * link.width for link in chain[:-1]}
    change = put_wider(block, chain, widths, density=1.0)
    size: int | None = None  # Channels of one part of the width before.
    for link in chain:
        rows = link.width // parts if link.name in widths else None
        for layer in link.layers:
            old, new = change.before[layer], change.after[layer]
            _put_old_layer(old, new, rows, size, reads_new)
        for name in link.followers if link.name in widths else ():
            _copy_vectors(change.before[name], change.after[name], rows)
        size = rows


def _put_old_layer(
    old: Any, new: Any, rows: int | None, columns: int | None, reads_new: bool
) -> None:
    """Put a dense layer at the old channels of a wider one."""
    # A caller's mode may leave new weights without values.
    new.weight.copy_(_random_weight('weight', new.weight))
    weights = filters_of(old), filters_of(new)
    _put_old(*weights, rows, columns, reads_new)
    if new.bias is not old.bias:
        new.bias.copy_(_random_weight('bias', new.bias))
        _put_old(old.bias, new.bias, rows, None, reads_new)


def _put_old(
    old: Tensor,
    new: Tensor,
    rows: int | None,
    columns: int | None,
    reads_new: bool,
) -> None:
    """Put a dense layer's weight or bias at the old channels of a wider one.

    ``rows`` and ``columns`` are sizes of the parts of a dimension, None for a
    dimension of the same size.
    """
    places = _places(len(old), rows)
    kept = new[places]
    if old.dim() > 1:
        if not reads_new:
            kept.zero_()
        kept[:, _places(old.shape[1], columns)] = old
    new[places] = kept if old.dim() > 1 else old
    if rows:
        others = torch.ones(len(new), dtype=torch.bool)
        others[places] = False
        new[others.nonzero().flatten()[1::2]] = 0


def _places(count: int, part: int | None) -> Tensor:
    """Return the positions of old channels in parts of twice the size."""
    old = torch.arange(count)
    return old if part is None else old // part * 2 * part + old % part


def _copy_vectors(old: nn.Module, new: nn.Module, part: int | None) -> None:
    """Copy the numbers of a norm or depthwise layer to a wider one."""
    for name, weight in new.named_parameters():
        weight.copy_(_random_weight(name, weight))
    tensors = dict(new.named_parameters()) | dict(new.named_buffers())
    for name, tensor in [*old.named_parameters(), *old.named_buffers()]:
        wide = tensors[name]
        if wide.shape == tensor.shape:
            wide.copy_(tensor)
            continue
        axis = tensor.shape.index(max(tensor.shape))
        places = _places(tensor.shape[axis], part)
        wide.index_copy_(axis, places, tensor)


def random_copy(module: nn.Module) -> nn.Module:
    """Copy a network to the CPU with random weights, in single precision.

    Its own weights may hide differences: a block whose last norm is zero adds
    nothing.
    """
    memo: dict[int, Any] = {}
    for name, weight in module.named_parameters():
        if not is_lazy(weight):
            memo[id(weight)] = nn.Parameter(
                _random_weight(name, weight), requires_grad=False
            )
    for one in module.modules():
        # Attributes too: weight_norm and other hooks store weights there.
        for tensor in [*one._buffers.values(), *vars(one).values()]:
            if isinstance(tensor, Tensor):
                memo[id(tensor)] = _on_cpu(tensor, torch.ones)
    copied = copy.deepcopy(module, memo)
    localize_norms(copied)
    return copied


def _random_weight(name: str, weight: Tensor) -> Tensor:
    if not weight.is_floating_point():
        return _on_cpu(weight, torch.zeros)
    drawn = torch.randn(weight.shape)
    if weight.dim() < 2:
        return 0.2 * drawn + ('bias' not in name)
    fan_in = weight[0].numel() if len(weight) > 1 else 1
    return drawn / max(fan_in, 1) ** 0.5


def _on_cpu(tensor: Tensor, fill: Callable[..., Tensor]) -> Tensor:
    """Copy a tensor to the CPU, and fill a tensor without values."""
    floating = tensor.is_floating_point()
    dtype = torch.float32 if floating else tensor.dtype
    if not tensor.is_meta:
        return tensor.detach().to('cpu', dtype, copy=True)
    fill = fill if floating else torch.zeros
    return fill(tensor.shape, dtype=dtype)


def arguments(example: Any) -> Arguments:
    """Return the arguments of an example, with values."""
    example = tree_map_only(Tensor, lambda t: _on_cpu(t, torch.randn), example)
    if isinstance(example, Mapping):
        return (), dict(example)
    return (example if isinstance(example, tuple) else (example,)), {}


def with_twice_the_batch(inputs: Arguments) -> Arguments:
    """Return the arguments with a mirrored copy of each sample."""
    return tree_map_only(
        Tensor,
        lambda t: torch.cat([t, t.flip(-1)]) if t.dim() else t,
        inputs,
    )


def with_other_middle(tensor: Tensor) -> Tensor:
    """Return a tensor with other values in the middle of dimension 1."""
    if tensor.dim() < 2 or not tensor.shape[1]:
        return tensor
    other = tensor.clone()
    middle = other[:, tensor.shape[1] // 2]
    if tensor.dtype == torch.bool:
        middle.logical_not_()
    elif tensor.is_floating_point():
        middle += 1
    else:
        middle.copy_(torch.where(middle > 0, middle - 1, 1))
    return other
