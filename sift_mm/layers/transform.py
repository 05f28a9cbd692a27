"""Sparse-IFT for any built network."""

import inspect
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from .composite import Composite
from .dense import (
    channels_in,
    is_depthwise,
    plain_type,
    put,
    size_of,
    weight_scale,
)
from .members import Member, check_share, share_of_flops
from .wide import Link, Wide, find_chains, restore, widen

# Parts of the names that a linear classifier goes by, of stems, and what the
# names of layers that give predictions end in.
CLASSIFIERS = {'head', 'heads', 'fc', 'classifier', 'lm_head', 'score'}
STEMS = {'stem', 'patch_embed'}
PREDICTORS = re.compile(r'.*(^|_)(cls|reg|seg|obj|score|centerness)')


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
        return [name for one in self.replaced.values()
                for name in one.sparse_parameters]

    def __str__(self) -> str:
        lines = [f'{len(self.replaced)} layers replaced:']
        lines += [f'  {name}: {one.before} -> {one.after}, FLOPs '
                  f'{one.flops_ratio:.4f} of the dense'
                  for name, one in self.replaced.items()]
        lines += [f'{len(self.skipped)} left as they were:']
        lines += [f'  {name}: {why}' for name, why in self.skipped.items()]
        return '\n'.join(lines)


def transform(module: nn.Module,
              family: str,
              sparsity: float,
              include: Sequence[str] | None = None,
              exclude: Sequence[str] = (),
              inner: str = 'none',
              sparse_factors: str | None = None) -> TransformReport:
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
    of it or read its attributes: run the whole network once.

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

    Returns:
        TransformReport: What was replaced, with sizes, and what was not, with
        the reason.

    Raises:
        ValueError: If an argument is wrong, a pattern matches no layer, or
            nothing could be replaced.
    """
    member = Member(family, sparsity, inner, sparse_factors)
    # MMEngine initialises when a run starts, and would draw the new layers by
    # the library's rule, if that was not done before.
    uninitialised: Any = module
    if getattr(module, 'is_init', True) is False:
        uninitialised.init_weights()
    layers, skipped = _choose(module, family, include, exclude)
    replaced = (_widen(module, member, layers, skipped) if member.widens
                else _replace(module, member, layers, skipped))
    report = TransformReport(replaced, skipped)
    if not replaced:
        raise ValueError(f'No layer could be replaced. {report}')
    return report


def _choose(module: nn.Module, family: str, include: Sequence[str] | None,
            exclude: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Layers to replace, and why others cannot or should not be."""
    if plain_type(module):
        raise ValueError('The module is itself a layer, which cannot be '
                         'replaced in place; give the one that holds it.')
    found = dict(_layers(module))
    special = _left_alone(found) if include is None else {}
    wanted = set(found if include is None else _matching(found, include))
    unwanted = set(_matching(found, exclude))
    owners: dict[int, list[str]] = {}
    for name, p in module.named_parameters(remove_duplicate=False):
        owners.setdefault(id(p), []).append(name.rpartition('.')[0])
    layers, skipped = {}, {}
    for name, layer in found.items():
        if name in unwanted or name not in wanted:
            skipped[name] = 'not asked for'
        elif name in special:
            skipped[name] = special[name]
        elif reason := _obstacle(module, layer, family, owners):
            skipped[name] = reason
        else:
            layers[name] = layer
    return layers, skipped


def _layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """What holds the weights of a network, but for norms and embeddings."""
    inside = ''
    for name, child in module.named_modules():
        if inside and name.startswith(inside):
            continue
        if isinstance(child, Composite):
            inside = f'{name}.'
            yield name, child
        elif isinstance(child, (_ConvNd, nn.Linear, nn.MultiheadAttention)):
            yield name, child
        elif (not isinstance(child, (nn.Embedding, nn.LayerNorm))
              and not any(True for _ in child.children())
              and any(is_lazy(p) or p.dim() > 1
                      for p in child.parameters())):
            yield name, child


def _matching(names: Mapping[str, Any],
              patterns: Sequence[str]) -> Iterator[str]:
    if isinstance(patterns, str):
        raise ValueError('include and exclude take lists of patterns; write '
                         f'[{patterns!r}].')
    for pattern in patterns:
        hits = [name for name in names if fnmatchcase(name, pattern)]
        if not hits:
            raise ValueError(f'The pattern {pattern!r} matches no layer; '
                             f'there are: {", ".join(names)}.')
        yield from hits


def _left_alone(layers: Mapping[str, Any]) -> dict[str, str]:
    """Layers that stay as they are unless asked for, with the reason."""
    found = {}
    for name, layer in layers.items():
        parts = name.split('.')
        if not plain_type(layer) or not isinstance(layer.weight,
                                                   nn.Parameter):
            continue
        if STEMS & set(parts) or (isinstance(layer, _ConvNd)
                                  and channels_in(layer) <= 4):
            found[name] = 'the stem, it reads the image'
        elif PREDICTORS.fullmatch(parts[-1]):
            found[name] = 'it gives predictions, as its name says'
        elif not layer.weight.requires_grad:
            found[name] = 'frozen: new weights would never be trained'
        elif not layer.weight.is_meta and not layer.weight.any():
            found[name] = 'its weight starts at zero, as a new one would not'
    last = list(layers)[-1] if layers else ''
    if (isinstance(layers.get(last), nn.Linear)
            and CLASSIFIERS & set(last.split('.'))):
        found[last] = 'the classifier, the last layer'
    return found


def _obstacle(module: nn.Module, layer: Any, family: str,
              owners: Mapping[int, list[str]]) -> str:
    """Why a layer cannot be replaced; '' if it can."""
    kind = type(layer).__name__
    if isinstance(layer, (Composite, Wide)):
        return f'a {kind} layer already'
    if plain_type(layer) is None:
        return (f'of type {kind}, of which it is not known whether it uses '
                'its weight as a plain layer does')
    if not isinstance(layer.weight, nn.Parameter):
        return 'its weight is no parameter'
    if is_depthwise(layer):
        return 'depthwise'
    if layer._forward_hooks or layer._forward_pre_hooks:
        return 'it has forward hooks, which would be lost'
    sharers = set(owners[id(layer.weight)])
    if any(module.get_submodule(name) is not layer for name in sharers):
        return f'it shares its weight: {", ".join(sorted(sharers))}'
    for name in sharers:
        owner, _, attribute = name.rpartition('.')
        if family != 'wide' and _reads_weight(module.get_submodule(owner),
                                              attribute):
            return 'its weight is read by the module that holds it'
    return ''


def _reads_weight(owner: nn.Module, name: str) -> bool:
    """Whether a module's forward uses a layer's weight without a call.

    As torchvision's Swin does with ``qkv``. What its forward calls in turn is
    not looked into; a composite layer then says so when its weight is read.
    """
    try:
        source = inspect.getsource(type(owner).forward)
    except (OSError, TypeError):
        return False
    return f'self.{name}.weight' in source


def _describe(layer: nn.Module) -> str:
    if not isinstance(layer, Composite):
        return repr(layer)
    parts = Counter(repr(m) for m in layer.modules() if plain_type(m))
    return (f'{type(layer).__name__}(' + ', '.join(
        f'{n} x {part}' if n > 1 else part for part, n in parts.items()) +
        ')')


def _replace(module: nn.Module, member: Member, layers: Mapping[str, Any],
             skipped: dict[str, str]) -> dict[str, Replacement]:
    replaced = {}
    for name, layer in layers.items():
        try:
            new = member.build(layer)
            ratio = share_of_flops(new, layer, member.sparsity)
            check_share(ratio)
        except ValueError as error:
            skipped[name] = str(error)
            continue
        if layer.bias is not None:
            _keep_bias(new, layer)
        put(module, name, new)
        replaced[name] = Replacement(
            _describe(layer), _describe(new), ratio,
            tuple(f'{name}.{n}' for n in new.sparse_parameter_names()))
    return replaced


def _widen(module: nn.Module, member: Member, layers: Mapping[str, Any],
           skipped: dict[str, str]) -> dict[str, Replacement]:
    """Widen all chains, the innermost blocks first."""
    parents = Counter(id(child) for parent in module.modules()
                      for child in parent.children())
    names: dict[int, str] = {}
    for name, layer in layers.items():
        if parents[id(layer)] > 1:
            skipped[name] = 'it is used in several places'
        elif member.family != 'wide' and size_of(layer)[2] > 1:
            skipped[name] = 'grouped: its groups are too small to factorise'
        else:
            names[id(layer)] = name
    replaced: dict[str, Replacement] = {}
    for block in reversed(list(module.modules())):
        # Who holds a Sequential may run it in parts, and keep what is
        # between: only with its holder can it be told.
        if isinstance(block, nn.Sequential) and block is not module:
            continue
        left = [one for one in layers.values()
                if names.get(id(one), '') not in {'', *replaced}]
        chains = find_chains(block, left)
        tried = set()
        while chains:
            chain = chains.pop(0)
            ours = tuple(names[id(link.layer)] for link in chain)
            if ours in tried:
                continue
            tried.add(ours)
            if replaced.keys().isdisjoint(ours):
                try:
                    replaced |= _widen_chain(block, chain, ours, member)
                    continue
                except ValueError as error:
                    for name in ours:
                        skipped.setdefault(name, str(error))
            # A part of it may be a chain: a feed-forward pair behind another
            # layer of the same width.
            chains += [part for part in (chain[1:], chain[:-1])
                       if len(part) > 1]
    for name in names.values():
        if name in replaced:
            skipped.pop(name, None)
        else:
            skipped.setdefault(name, 'no width between it and another layer '
                               'belongs to its block alone')
    return replaced


def _widen_chain(block: nn.Module, chain: list[Link], names: Sequence[str],
                 member: Member) -> dict[str, Replacement]:
    new, ratio = widen(block, chain, member.sparsity)
    replaced = {}
    for name, link in zip(names, chain, strict=True):
        wide: Any = new[link.name]
        if member.family == 'wide_factorized':
            bias = wide.bias
            wide = _factorize(member, link.layer, wide)
            wide.v.bias = bias
            put(block, link.name, wide)
            ratio = share_of_flops(wide, link.layer, member.sparsity)
            try:
                check_share(ratio)
            except ValueError:
                restore(block, chain)
                raise
        replaced[name] = Replacement(
            _describe(link.layer), _describe(wide), ratio,
            tuple(f'{name}.{n}' for n in wide.sparse_parameter_names()))
    return replaced


def _keep_bias(new: Composite, old: Any) -> None:
    """Give a new layer the bias of the old one, as a classifier's prior."""
    for part in new.modules():
        if plain_type(part) and part.bias is not None:
            part.bias = old.bias  # Of all inner layers, one has a bias.


def _factorize(member: Member, old: nn.Module, wide: nn.Module) -> Composite:
    """Factorise a widened layer down to the FLOPs that it had before."""
    fan_in, fan_out, _ = size_of(old)
    scale = weight_scale(old) * math.sqrt(fan_in / size_of(wide)[0])
    return member.build(wide, scale=scale, cost=fan_in * fan_out)
