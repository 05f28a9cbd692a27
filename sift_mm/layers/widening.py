"""Widening of all chains of a network that the value check accepts."""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves, tree_map_only

from sift_mm.errors import UserError
from sift_mm.flops import image_channels, on_meta
from sift_mm.layers.chains import Place, find_chains
from sift_mm.layers.family import Member, check_share, share_of_flops
from sift_mm.layers.plain import Change, size_of, weight_scale
from sift_mm.layers.report import (
    Replacement,
    find_refused,
    note_refused,
    record,
)
from sift_mm.layers.value_check import ValueCheck
from sift_mm.layers.wide import Widening, plan_widening, put_wider

Names = tuple[str, ...]
# Parameters of the largest network that runs as a whole without an example.
WHOLE_LIMIT = 200_000_000
# Image sides of the value check, which takes seconds on larger images.
SMALL_SIDES = (64, 96)


def widen_chains(
    module: nn.Module,
    member: Member,
    layers: Mapping[str, Any],
    skipped: dict[str, str],
    example: Any,
) -> dict[str, Replacement]:
    """Widen the inside of all chains that the value check accepts.

    Args:
        module (nn.Module): The network, changed in place.
        member (Member): The member, 'wide' or 'wide_factorized'.
        layers (Mapping[str, nn.Module]): Layers that may be widened.
        skipped (dict[str, str]): Reasons of layers that stay, extended.
        example (Tensor | tuple | Mapping, optional): As for ``transform``.

    Raises:
        ValueError: If the network does not run with the example.
    """
    names = _single_layers(module, member, layers, skipped)
    whole = _check_of_network(module, example)
    plans: list[Widening] = []
    failed: set[Names] = set()
    while True:
        done = {name for plan in plans for name in plan.names}
        new = _plan(module, member, names, skipped, done, failed, whole)
        refused = _refused_by_network(whole, new)
        plans += [plan for plan in new if plan.names not in refused]
        if not refused:
            break
        # A part of a refused chain may be one.
        failed |= refused.keys()
        note_refused(new, refused, skipped)
    replaced: dict[str, Replacement] = {}
    for plan in plans:
        replaced |= _put(plan.block, plan, member)
    for name in names.values():
        if name in replaced:
            skipped.pop(name, None)
        else:
            skipped.setdefault(
                name,
                'no width between it and another layer '
                'belongs to its block alone',
            )
    return replaced


def _single_layers(
    module: nn.Module,
    member: Member,
    layers: Mapping[str, Any],
    skipped: dict[str, str],
) -> dict[nn.Module, str]:
    """Return the layers that may be part of a chain, with their names."""
    parents = Counter(
        child for parent in module.modules() for child in parent.children()
    )
    names: dict[nn.Module, str] = {}
    for name, layer in layers.items():
        if parents[layer] > 1:
            skipped[name] = 'it is used in several places'
        elif member.kind.composite and size_of(layer)[2] > 1:
            skipped[name] = 'grouped: its groups are too small to factorise'
        else:
            names[layer] = name
    return names


def _check_of_network(module: nn.Module, example: Any) -> ValueCheck | None:
    """Return the check of a whole network, None if it needs an example."""
    if example is not None:
        for smaller in _smaller(example):
            with suppress(Exception):  # Any error of a layer.
                check = ValueCheck(module, smaller)
                if check.trains:
                    return check
        try:
            return ValueCheck(module, example)
        except Exception as error:
            raise UserError(
                'The network does not run with the example: '
                f'{_first_line(error)}'
            ) from None
    weights = list(module.parameters())
    known = not any(weight.is_meta for weight in weights)
    if known and sum(map(torch.numel, weights)) <= WHOLE_LIMIT:
        for guess in _guess_examples(module):
            try:
                return ValueCheck(module, guess)
            except Exception:
                continue
    return None


def _smaller(example: Any) -> Iterator[Any]:
    """Yield smaller images in place of images without values."""
    leaves = tree_leaves(example)
    if all(t.is_meta for t in leaves if isinstance(t, Tensor)):
        for side in SMALL_SIDES:
            yield _cropped(example, side)


def _guess_examples(module: nn.Module) -> Iterator[Tensor]:
    """Yield token ids or images as possible inputs of a network."""
    for one in module.modules():
        if isinstance(one, nn.Embedding):
            yield torch.arange(32).view(2, 16) % one.num_embeddings
            return
        if isinstance(one, _ConvNd):
            sides = (*SMALL_SIDES, 224, 32) if one.in_channels <= 4 else ()
            for side in sides:
                channels = image_channels(module)
                yield torch.empty(2, channels, side, side, device='meta')
            return


def _plan(
    module: nn.Module,
    member: Member,
    names: Mapping[nn.Module, str],
    skipped: dict[str, str],
    done: set[str],
    failed: Collection[Names],
    whole: ValueCheck | None,
) -> list[Widening]:
    """Plan all chains except failed ones, the innermost blocks first."""
    plans: list[Widening] = []
    for block_name, block in reversed(list(module.named_modules())):
        # The owner of a Sequential may run it in parts and read between;
        # only a run of the owner shows that.
        if isinstance(block, nn.Sequential) and block is not module:
            continue
        if isinstance(block, (nn.ModuleList, nn.ModuleDict)):
            continue  # Never run themselves.
        tried: set[tuple[Names, ...]] = set()
        for gated in (False, True):
            left = {one for one, name in names.items() if name not in done}
            chains = find_chains(block, left, gated)
            while chains:
                place = Place(block_name, chains.pop(0))
                ours = place.names()
                links = tuple(tuple(link.layers) for link in place.chain)
                if links in tried:
                    continue
                tried.add(links)
                if done.isdisjoint(ours) and ours not in failed:
                    try:
                        plans.append(_plan_chain(block, place, member, whole))
                        done.update(ours)
                        continue
                    except ValueError as error:
                        for name in ours:
                            skipped.setdefault(name, str(error))
                # Parts may be chains: a feed-forward pair behind another layer
                # of the same width.
                chains += [
                    part
                    for part in (place.chain[1:], place.chain[:-1])
                    if len(part) > 1
                ]
    return plans


def _plan_chain(
    block: nn.Module, place: Place, member: Member, whole: ValueCheck | None
) -> Widening:
    """Plan a chain; raise a ValueError with the reason if it cannot be."""
    plan = plan_widening(block, place, member.sparsity)
    if member.kind.composite:
        _put(on_meta(block), plan, member)
    if not _runs(whole, plan):
        _check_block(block, plan)
    return plan


def _runs(whole: ValueCheck | None, plan: Widening) -> bool:
    """Return whether the run of the whole network covers a chain."""
    return whole is not None and whole.called.issuperset(plan.names)


def _check_block(block: nn.Module, plan: Widening) -> None:
    """Refuse a block whose outputs change with a wider inside."""
    kind = type(block).__name__
    check, why = None, ''
    for inputs in (_cropped(plan.inputs, 8), plan.inputs):
        try:
            check = ValueCheck(block, inputs)
            break
        except Exception as error:  # Any error of a layer.
            why = _first_line(error)
    if check is None:
        raise UserError(f'{kind} does not run on random numbers ({why})')
    try:
        why = check.objection([Place('', plan.place.chain)])
    except Exception as error:
        raise UserError(
            f'{kind} does not run with a wider inside: a part of it has a '
            f'fixed width ({_first_line(error)})'
        ) from None
    if why:
        raise UserError(f'a wider inside changes the output of {kind} ({why})')


def _first_line(error: Exception) -> str:
    return str(error).partition('\n')[0]


def _cropped(inputs: Any, side: int) -> Any:
    """Return smaller images, which take less time."""

    def crop(image: Tensor) -> Tensor:
        if image.dim() < 4 or image.shape[2] != image.shape[-1]:
            return image
        for axis in range(2, image.dim()):
            image = image.narrow(axis, 0, min(image.shape[axis], side))
        return image

    return tree_map_only(Tensor, crop, inputs)


def _refused_by_network(
    whole: ValueCheck | None, plans: Sequence[Widening]
) -> dict[Names, str]:
    """Return the chains that the whole network refuses, with the reasons."""

    def objection(some: Sequence[Widening]) -> str:
        assert whole is not None
        try:
            return whole.objection([plan.place for plan in some])
        except Exception as error:  # Any error of a layer.
            return _first_line(error)

    return find_refused([p for p in plans if _runs(whole, p)], objection)


def _put(
    block: nn.Module, plan: Widening, member: Member
) -> dict[str, Replacement]:
    """Put a planned chain in a block; raise a ValueError for a low rank."""
    chain, density = plan.place.chain, 1 - member.sparsity
    change: Change = put_wider(block, chain, plan.widths, density)
    layers = [pair for link in chain for pair in link.layers.items()]
    replaced = {}
    for full_name, (name, layer) in zip(plan.names, layers, strict=True):
        wide: Any = change.after[name]
        ratio = plan.ratio
        if member.kind.composite:
            wide = _factorize(wide, layer, plan.left, member)
            change.replace(name, wide)
            # Wider depthwise convolutions cost their share too.
            ratio = share_of_flops(wide, layer, member.sparsity)
            ratio += 1 - plan.left
            check_share(ratio)
        replaced[full_name] = record(full_name, layer, wide, ratio)
    return replaced


def _factorize(wide: Any, layer: Any, left: float, member: Member) -> Any:
    """Build the factorized layer in place of a wide one."""
    bias = wide.bias
    fan_in, fan_out, _ = size_of(layer)
    scale = math.sqrt(fan_in / size_of(wide)[0]) * weight_scale(layer)
    new = member.build(wide, scale=scale, cost=left * fan_in * fan_out)
    new.v.bias = bias
    return new
