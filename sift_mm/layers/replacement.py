"""Sparse-IFT for any built network."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from sift_mm.errors import Mistake
from sift_mm.flops import on_meta, plain_operators
from sift_mm.layers.candidates import choose_layers
from sift_mm.layers.composite import Composite
from sift_mm.layers.member import Member, check_share, share_of_flops
from sift_mm.layers.plain import Change, plain_type, size_of, weight_scale
from sift_mm.layers.wide import Link, find_chains, widen


@dataclass(frozen=True)
class Replacement:
    """A layer that was replaced.

    Args:
        before (str): The dense layer, with its sizes.
        after (str): What stands in its place, with its sizes.
        flops_ratio (float): FLOPs under masks at the nominal sparsity over
            those of the dense layer, or, in a chain that was widened, of the
            chain.
        sparse_parameters (tuple[str, ...]): Full names of the weights that
            masks go on.
    """

    before: str
    after: str
    flops_ratio: float
    sparse_parameters: tuple[str, ...]


@dataclass(frozen=True)
class TransformReport:
    """What :func:`transform` did to a network.

    Args:
        replaced (Mapping[str, Replacement]): By name of the layer.
        skipped (Mapping[str, str]): Why a layer was left as it was, by name.
    """

    replaced: Mapping[str, Replacement]
    skipped: Mapping[str, str]

    @property
    def sparse_parameters(self) -> list[str]:
        """Full names of all weights that masks go on."""
        return [
            name
            for one in self.replaced.values()
            for name in one.sparse_parameters
        ]

    def __str__(self) -> str:
        lines = [f'{len(self.replaced)} layers replaced:']
        lines += [
            f'  {name}: {one.before} -> {one.after}, FLOPs '
            f'{one.flops_ratio:.4f} of the dense'
            for name, one in self.replaced.items()
        ]
        lines += [f'{len(self.skipped)} left as they were:']
        lines += [f'  {name}: {why}' for name, why in self.skipped.items()]
        return '\n'.join(lines)


class NothingReplaced(Mistake):
    """A network has no layer that a member of the family can replace.

    Args:
        report (TransformReport): Why each was left.
    """

    def __init__(self, report: TransformReport) -> None:
        super().__init__(f'No layer could be replaced. {report}')
        self.report = report


def transform(
    module: nn.Module,
    family: str,
    sparsity: float,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    inner: str = 'none',
    sparse_factors: str | None = None,
    example: Any = None,
) -> TransformReport:
    """Replace a network's dense layers by a member of the family, in place.

    Convolutions and linear layers of PyTorch's own types (mmcv's wrappers of
    them too) are replaced by larger ones of the same FLOPs under masks. 'wide'
    and 'wide_factorized' widen the inside of feed-forward pairs and residual
    blocks, so that the network's interface stays; a block is one if it runs,
    with outputs of the same shape, after it was widened.

    New layers have new weights (see their classes), drawn from PyTorch's
    random state, and the biases that were there. A network of MMEngine that is
    not initialised yet is initialised first (with a checkpoint, if its
    ``init_cfg`` says so). Load a checkpoint of the transformed network
    afterwards. Masks are not part of a network: ``SparseTrainingHook`` or
    ``MaskSet`` put them on the weights that the report, and
    ``sparse_parameter_names``, list.

    The check of a block runs it on one tensor, in training and evaluation. It
    does not see further inputs of a block, nor other modules that call parts
    of it or read its attributes: give an ``example``, or run the whole network
    once.

    Args:
        module (nn.Module): The network.
        family (str): 'wide', 'parallel', 'factorized', 'doped' or
            'wide_factorized'.
        sparsity (float): Share of zero weights, in [0, 1).
        include (Sequence[str], optional): Glob patterns of layer names. None
            takes all but the stem (what reads an image of up to 4 channels,
            or is called so), the classifier (the last layer, if it is linear
            and its name says so), layers named as predictors (``conv_seg``,
            ``retina_cls``), frozen ones and those that are zero.
        exclude (Sequence[str]): Glob patterns of layer names to leave.
        inner (str): What follows an inner layer: 'none', 'norm', 'norm_act'.
        sparse_factors (str, optional): As for :class:`Member`.
        example (Tensor | tuple, optional): An input of the network, or all
            of them, of which shapes and types count. Layers with whose
            replacements the network does not run stay as they are.

    Returns:
        TransformReport: What was replaced, with sizes, and what was not, with
        the reason.

    Raises:
        ValueError: If an argument is wrong, a pattern matches no layer, the
            network does not run with the example, or nothing could be
            replaced.
    """
    member = Member(family, sparsity, inner, sparse_factors)
    # MMEngine initialises when a run starts, and would draw the new layers by
    # the library's rule, if that was not done before.
    uninitialised: Any = module
    if getattr(module, 'is_init', True) is False:
        uninitialised.init_weights()
    layers, skipped = choose_layers(module, family, include, exclude)
    inputs = example if isinstance(example, tuple) else (example,)
    expected = None if example is None else output_shapes(module, inputs)
    if isinstance(expected, str):
        raise Mistake(f'The network does not run with the example: {expected}')
    replaced: dict[str, Replacement] = {}
    failed: set[tuple[str, ...]] = set()
    while True:
        left = {n: one for n, one in layers.items() if n not in replaced}
        changes = (
            _widen(module, member, left, skipped, failed)
            if member.kind.widens
            else _replace(module, member, left, skipped)
        )
        bad: set[tuple[str, ...]] = set()
        if expected is not None:
            bad = _undo_what_fails(module, changes, inputs, expected, skipped)
        for change in changes:
            if change.names not in bad:
                replaced |= change.replaced
        # In place of a chain, a part of it may do.
        if not bad or not member.kind.widens:
            break
        failed |= bad
    report = TransformReport(replaced, skipped)
    if not replaced:
        raise NothingReplaced(report)
    return report


def _record(name: str, old: nn.Module, new: Any, ratio: float) -> Replacement:
    weights = new.sparse_parameter_names()
    names = tuple(f'{name}.{weight}' for weight in weights)
    return Replacement(_describe(old), _describe(new), ratio, names)


def _describe(layer: nn.Module) -> str:
    if not isinstance(layer, Composite):
        return repr(layer)
    counts = Counter(repr(m) for m in layer.modules() if plain_type(m))
    parts = [f'{n} x {part}' if n > 1 else part for part, n in counts.items()]
    return f'{type(layer).__name__}({", ".join(parts)})'


def output_shapes(
    module: nn.Module, inputs: tuple[Any, ...]
) -> list[Any] | str:
    """Shapes of what a network gives in evaluation, or why it does not run.

    There is no arithmetic, and the network is left as it is.
    """
    inputs = tree_map_only(Tensor, lambda t: t.to('meta'), inputs)
    try:
        with torch.no_grad(), plain_operators():
            out = on_meta(module, norms=False)(*inputs)
    except Exception as error:  # Whatever a layer makes of it.
        return str(error).partition('\n')[0]
    return [getattr(leaf, 'shape', None) for leaf in tree_leaves(out)]


def _undo_what_fails(
    module: nn.Module,
    changes: Sequence[Change],
    inputs: tuple[Any, ...],
    expected: list[Any],
    skipped: dict[str, str],
) -> set[tuple[str, ...]]:
    """Undo the changes with which a network gives something else.

    Those whose names differ in numbers alone stand or fall together. Returns
    the names of their layers.
    """
    if output_shapes(module, inputs) == expected:
        return set()
    kinds: dict[str, list[Change]] = defaultdict(list)
    for change in changes:
        kinds[re.sub(r'\d+', '#', ' '.join(change.names))].append(change)
        change.undo()
    failed = set()
    for alike in kinds.values():
        for change in alike:
            change.redo()
        found = output_shapes(module, inputs)
        if found == expected:
            continue
        why = found if isinstance(found, str) else 'other outputs'
        for change in alike:
            change.undo()
            failed.add(change.names)
            for name in change.names:
                skipped[name] = (
                    f'{change.kind} is read from outside where it would be '
                    f'another ({why})'
                )
    return failed


def _replace(
    module: nn.Module,
    member: Member,
    layers: Mapping[str, Any],
    skipped: dict[str, str],
) -> list[Change]:
    changes = []
    for name, layer in layers.items():
        try:
            new = member.build(layer)
            ratio = share_of_flops(new, layer, member.sparsity)
            check_share(ratio)
        except ValueError as error:
            skipped[name] = str(error)
            continue
        for part in new.modules():
            # Of all inner layers, one has a bias: it may be a prior.
            if plain_type(part) and part.bias is not None:
                part.bias = layer.bias
        holder = module.get_submodule(name.rpartition('.')[0])
        change = Change(module, type(holder).__name__)
        change.put(name, new)
        change.replaced[name] = _record(name, layer, new, ratio)
        changes.append(change)
    return changes


def _widen(
    module: nn.Module,
    member: Member,
    layers: Mapping[str, Any],
    skipped: dict[str, str],
    failed: Collection[tuple[str, ...]],
) -> list[Change]:
    """Widen all chains but some, the innermost blocks first."""
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
    changes: list[Change] = []
    done: set[str] = set()
    for block in reversed(list(module.modules())):
        # Who holds a Sequential may run it in parts, and keep what is
        # between: only with its holder can it be told.
        if isinstance(block, nn.Sequential) and block is not module:
            continue
        if isinstance(block, (nn.ModuleList, nn.ModuleDict)):
            continue  # Never run themselves.
        left = {one for one, name in names.items() if name not in done}
        chains = find_chains(block, left)
        tried = set()
        while chains:
            chain = chains.pop(0)
            ours = tuple(names[link.layer] for link in chain)
            if ours in tried:
                continue
            tried.add(ours)
            if done.isdisjoint(ours) and ours not in failed:
                try:
                    changes.append(_widen_chain(block, chain, ours, member))
                    done.update(ours)
                    continue
                except ValueError as error:
                    for name in ours:
                        skipped.setdefault(name, str(error))
            # A part of it may be a chain: a feed-forward pair behind another
            # layer of the same width.
            chains += [
                part for part in (chain[1:], chain[:-1]) if len(part) > 1
            ]
    for name in names.values():
        if name in done:
            skipped.pop(name, None)
        else:
            skipped.setdefault(
                name,
                'no width between it and another layer '
                'belongs to its block alone',
            )
    return changes


def _widen_chain(
    block: nn.Module, chain: list[Link], names: Sequence[str], member: Member
) -> Change:
    change, ratio, left = widen(block, chain, member.sparsity)
    for name, link in zip(names, chain, strict=True):
        wide: Any = change.after[link.name]
        if member.kind.composite:
            bias = wide.bias
            fan_in, fan_out, _ = size_of(link.layer)
            scale = math.sqrt(fan_in / size_of(wide)[0])
            wide = member.build(
                wide,
                scale=scale * weight_scale(link.layer),
                cost=left * fan_in * fan_out,
            )
            wide.v.bias = bias
            change.put(link.name, wide)
            # With its part of what depthwise convolutions cost more.
            ratio = share_of_flops(wide, link.layer, member.sparsity)
            ratio += 1 - left
            try:
                check_share(ratio)
            except ValueError:
                change.undo()
                raise
        change.replaced[name] = _record(name, link.layer, wide, ratio)
    return change
