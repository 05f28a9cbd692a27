"""Fold a trained network: one plain layer for each composite and its norms.

Sums and products of weights are taken in float64 and rounded once, so that
outputs stay equal.
"""

import copy
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.nn.utils.parametrize import is_parametrized

from sift_mm.errors import UserError
from sift_mm.layers import Composite, Doped, Factorized, Parallel
from sift_mm.layers.plain import BATCH_NORMS, make_like, plain_type

_SIZED = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# Other forwards may do more: some of timm's norms end in an activation.
_FORWARDS = (_BatchNorm.forward, nn.SyncBatchNorm.forward)
_ALTERED = 'has hooks, parametrizations or a forward method of its own'
# Weight and bias of a linear map, in float64 on the CPU.
_Map = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class FoldReport:
    """Report of :func:`fold`, by module name.

    Args:
        folded (dict[str, str]): Composites and the plain layers that replace
            them; a shared composite is listed under each of its names.
        norms (list[str]): Batch norms folded into the layer before them,
            without the inner norms of composites.
        kept (dict[str, str]): Composites and (with ``norms=True``) batch
            norms that stay, with the reason.
    """

    folded: dict[str, str]
    norms: list[str]
    kept: dict[str, str]

    def __str__(self) -> str:
        lines = [
            f'Composites folded: {len(self.folded)}, norms folded: '
            f'{len(self.norms)}, kept: {len(self.kept)}'
        ]
        lines += [f'  {name}: {new}' for name, new in self.folded.items()]
        lines += [f'  {name}: norm, folded' for name in self.norms]
        lines += [f'  {name}: kept, {why}' for name, why in self.kept.items()]
        return '\n'.join(lines)


@torch.no_grad()
def fold(model: nn.Module, norms: bool = True) -> FoldReport:
    """Fold a network for inference, in place, to equal outputs.

    A linear :class:`Parallel`, :class:`Factorized` or :class:`Doped` becomes
    one plain layer, inner batch norms included. A composite with an inner
    activation, with hooks, or with norms that depend on the input is kept.

    Then each batch norm is folded into the plain layer before it and leaves an
    ``nn.Identity``. The layer before a norm is its sibling by order of
    registration, as in mmcv's ``fuse_conv_bn``. Doubtful norms are kept: with
    hooks or several owners (heads with a norm for each level); several in a
    row outside an ``nn.Sequential``; in a ``ModuleList`` or ``ModuleDict``;
    not next in the ``order`` of mmcv's ``ConvModule``.

    The structure does not show ``forward``. Results are wrong, without a
    warning, if it runs a norm ahead of that layer, behind a functional
    activation or a sum, over another dimension (a linear layer's output of
    three), or not always (``ConvModule(...)(x, norm=False)``), or if it reads
    the layer's bare output or weights. Compare outputs before and after;
    ``norms=False`` makes no such assumption.

    Fold when training is over: sums and products of sparse weights are dense.
    With ``norms=False``, composites without inner norm leave the
    ``state_dict`` of the plain network; a composite with inner norm becomes a
    layer with bias.

    Args:
        model (nn.Module): The whole trained network, in evaluation mode.
        norms (bool): Whether to fold batch norms behind plain layers too.

    Returns:
        FoldReport: Folded and kept modules, with the reasons.

    Raises:
        ValueError: If the model is a composite itself, or a composite or
            batch norm of it is in training mode. The model is left alone.
    """
    if isinstance(model, Composite):
        raise UserError(
            f'The model is a {type(model).__name__} itself, which cannot be '
            'replaced in place; fold the module that holds it.'
        )
    for name, module in model.named_modules():
        if module.training and isinstance(module, (Composite, _BatchNorm)):
            raise UserError(
                f'{type(module).__name__} {name!r} is in training mode, and '
                'folding is for inference; call model.eval() first.'
            )
    report = FoldReport({}, [], {})
    _fold_composites(model, report)
    if norms:
        _fold_norms(model, report)
    concerned = (Composite, _BatchNorm) if norms else Composite
    for name, module in model.named_modules():
        if isinstance(module, concerned):
            why = 'part of a composite that is kept'
            report.kept.setdefault(
                name, why if name else 'it is the model itself'
            )
    return report


def _fold_composites(model: nn.Module, report: FoldReport) -> None:
    """Replace each composite that can be folded."""
    done: dict[nn.Module, nn.Module] = {}
    for prefix, parent in _parents(model).items():
        for key, child in _children(parent).items():
            if not isinstance(child, Composite):
                continue
            name = f'{prefix}{key}'
            if reason := _obstacle(child):
                report.kept[name] = reason
                continue
            if child not in done:
                done[child] = _plain(child)
            parent.add_module(key, done[child])
            report.folded[name] = f'{_describe(child)} -> {done[child]}'


def _fold_norms(model: nn.Module, report: FoldReport) -> None:
    """Fold batch norms into the plain layers that they follow."""
    places = Counter(
        child
        for parent in model.modules()
        for child in _children(parent).values()
    )
    for prefix, parent in _parents(model).items():
        # Identities change nothing, also those that a folded norm leaves.
        children: list[tuple[str, Any]] = [
            (key, child)
            for key, child in _children(parent).items()
            if type(child) is not nn.Identity
        ]
        where, layer = '', None
        for (key, child), (_, after) in pairwise([*children, ('', None)]):
            if isinstance(child, _BatchNorm):
                reason = _doubt(parent, layer, child, after, places)
                if reason is None:
                    layer = fuse(layer, child)
                    parent.add_module(where, layer)
                    parent.add_module(key, nn.Identity().eval())
                    report.norms.append(f'{prefix}{key}')
                    continue
                report.kept[f'{prefix}{key}'] = reason
            where, layer = key, child


def _children(parent: nn.Module) -> dict[str, nn.Module]:
    """Return submodules by key, also shared ones that repeat."""
    return {k: m for k, m in parent._modules.items() if m is not None}


def _parents(model: nn.Module) -> dict[str, nn.Module]:
    """Return modules outside composites by the prefix of their children."""
    inside = {
        part
        for module in model.modules()
        if isinstance(module, Composite)
        for part in module.modules()
    }
    return {
        f'{name}.' if name else '': module
        for name, module in model.named_modules()
        if module not in inside
    }


def altered(module: nn.Module) -> bool:
    """Return whether calling a module does more than its class says."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or 'forward' in vars(module)
        or is_parametrized(module)
        or _has_any_global_hook()
    )


def _obstacle(composite: Any) -> str | None:
    """Return the reason to keep a composite, None if it can be folded."""
    if type(composite) not in (Parallel, Factorized, Doped):
        return f'a {type(composite).__name__} is of no kind that can be folded'
    for name, part in composite.named_modules():
        if altered(part):
            return f'{name or "it"} {_ALTERED}'
    if isinstance(composite, Doped):
        if plain_type(composite.sparse) is None:
            return f'sparse is a {type(composite.sparse).__name__}'
        reason = _obstacle(composite.low_rank)
        return reason and f'low_rank cannot be folded: {reason}'
    if type(composite.act) is not nn.Identity:
        return (
            f'an activation is inside (inner={composite.inner!r}), so it '
            'is not linear'
        )
    pairs = _pairs(composite)
    layers = [layer for layer, _ in pairs]
    if isinstance(composite, Factorized):
        layers.append(composite.v)
    for layer in layers:
        if plain_type(layer) is None:
            return f'an inner layer is a {type(layer).__name__}'
    return next(filter(None, (mismatch(*pair) for pair in pairs)), None)


def _pairs(composite: Any) -> list[tuple[nn.Module, nn.Module]]:
    """Return the inner layers of a composite, each with its norm."""
    if isinstance(composite, Factorized):
        return [(composite.u, composite.norm)]
    norms = composite.norms or [nn.Identity()] * len(composite.layers)
    return list(zip(composite.layers, norms, strict=True))


def mismatch(layer: Any, norm: Any) -> str | None:
    """Return why a norm cannot be folded into a plain layer, or None."""
    name, kind = type(norm).__name__, plain_type(layer)
    if type(norm) is nn.Identity:
        return None
    if not isinstance(norm, _BatchNorm) or norm.running_mean is None:
        return f'{name} has no running statistics and depends on its input'
    if type(norm).forward not in _FORWARDS:
        return f'{name} has a forward method of its own'
    # The norm has to have the layer's number of dimensions: a norm for images
    # does not run over the features of a linear layer.
    expected = BATCH_NORMS.get(kind, nn.BatchNorm1d)  # type: ignore
    if isinstance(norm, _SIZED) and not isinstance(norm, expected):
        return f'{name} is not for what a {type(layer).__name__} gives'
    if norm.num_features != layer.weight.shape[0]:
        return (
            f'{name} of {norm.num_features} channels is not for the '
            f'{layer.weight.shape[0]} of the layer before it'
        )
    return None


def _doubt(
    parent: nn.Module,
    layer: nn.Module | None,
    norm: nn.Module,
    after: nn.Module | None,
    places: Counter[nn.Module],
) -> str | None:
    """Return why a norm may not belong to the layer before it, or None.

    ``after`` is the module behind the norm; ``places`` counts owners.
    """
    kind, order = type(parent).__name__, getattr(parent, 'order', None)
    if layer is None:
        return f'it is the first in its {kind}'
    if plain_type(layer) is None:
        return (
            f'the {type(layer).__name__} before it is no plain '
            'convolution or linear layer'
        )
    if isinstance(parent, (nn.ModuleList, nn.ModuleDict)):
        return f'a {kind} does not say what runs after what'
    if isinstance(order, (list, tuple)) and ('conv', 'norm') not in pairwise(
        order
    ):
        return f'its {kind} runs in the order {tuple(order)}'
    if getattr(parent, 'efficient_conv_bn_eval_forward', None) is not None:
        return f'its {kind} folds it itself in each forward pass'
    for name, module in (('it', norm), ('the layer before it', layer)):
        if places[module] > 1:
            return f'{name} is registered in {places[module]} places'
        if altered(module):
            return f'{name} {_ALTERED}'
    if isinstance(after, _BatchNorm) and (
        type(parent).forward is not nn.Sequential.forward
    ):
        return 'several norms in a row may take turns behind the layer'
    return mismatch(layer, norm)


def _exact(module: nn.Module) -> Any:
    """Copy a module in float64 to the CPU: some devices have no float64."""
    return copy.deepcopy(module).to('cpu', torch.float64).eval()


def fuse(layer: Any, norm: Any) -> Any:
    """Return a copy of a layer with a batch norm folded in, rounded once."""
    return _fuse(layer, norm).to(layer.weight.device, layer.weight.dtype)


def _fuse(layer: Any, norm: Any) -> Any:
    """Return a copy of a layer, in float64, with its norm folded in."""
    layer, norm = _exact(layer), _exact(norm)
    if type(norm) is nn.Identity:
        return layer
    for name, value in (('weight', 1.0), ('bias', 0.0)):
        if getattr(norm, name) is None:  # PyTorch's linear fusion needs them.
            full = torch.full_like(norm.running_mean, value)
            setattr(norm, name, nn.Parameter(full))
    linear = isinstance(layer, nn.Linear)
    return (fuse_linear_bn_eval if linear else fuse_conv_bn_eval)(layer, norm)


def _map(composite: Any) -> _Map:
    """Return the linear map of a composite.

    Returns:
        tuple[Tensor, Tensor | None]: Weight ``(d_out, d_in / groups, *k)``
        and bias ``(d_out,)``.
    """
    if isinstance(composite, Doped):
        sparse = _exact(composite.sparse)
        return _sum([(sparse.weight, sparse.bias), _map(composite.low_rank)])
    parts = [_fuse(layer, norm) for layer, norm in _pairs(composite)]
    if isinstance(composite, Factorized):
        return _product(_exact(composite.v), parts[0])
    return _sum([(part.weight, part.bias) for part in parts])


def _sum(maps: list[_Map]) -> _Map:
    """Sum linear maps of one shape."""
    weights, biases = zip(*maps, strict=True)
    biases = tuple(b for b in biases if b is not None)
    return sum(weights), sum(biases) if biases else None


def _product(v: Any, u: Any) -> _Map:
    """Multiply V U, group by group.

    U's bias is the same at borders: V is pointwise and pads nothing.
    """
    groups = getattr(u, 'groups', 1)
    left = v.weight.reshape(groups, -1, v.weight.shape[1])
    right = u.weight.reshape(groups, left.shape[2], -1)
    weight = (left @ right).reshape(-1, *u.weight.shape[1:])
    if u.bias is None:
        return weight, v.bias
    bias = (left @ u.bias.reshape(groups, -1, 1)).flatten()
    return weight, bias if v.bias is None else bias + v.bias


def _plain(composite: Any) -> nn.Module:
    """Return the plain layer that equals a composite in evaluation mode."""
    weight, bias = _map(composite)
    doped = isinstance(composite, Doped)
    inner: Any = composite.sparse if doped else _pairs(composite)[0][0]
    # The meta device draws no random number.
    layer: Any = make_like(
        copy.deepcopy(inner).to('meta'),
        d_out=weight.shape[0],
        bias=bias is not None,
    )
    layer.weight = nn.Parameter(weight.to(inner.weight))
    if bias is not None:
        layer.bias = nn.Parameter(bias.to(inner.weight))
    return layer.eval()


def _describe(composite: Any) -> str:
    """Describe kind and size of a composite in words."""
    kind = type(composite).__name__
    if isinstance(composite, Parallel):
        return f'{kind} of {len(composite.layers)} branches'
    factors: Any = getattr(composite, 'low_rank', composite)
    return f'{kind} of rank {factors.u.weight.shape[0]}'
