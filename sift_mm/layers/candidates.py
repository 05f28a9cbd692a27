"""Choice of the layers to replace in a network, with reasons against."""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from sift_mm.errors import UserError
from sift_mm.layers.composite import Composite
from sift_mm.layers.family import family_of
from sift_mm.layers.plain import channels_in, is_depthwise, plain_type
from sift_mm.layers.wide import Wide
from sift_mm.names import matching

# Parts of the names of linear classifiers and of stems, and endings of the
# names of layers that give predictions.
CLASSIFIERS = {
    'head',
    'heads',
    'fc',
    'classifier',
    'lm_head',
    'embed_out',
    'score',
}
STEMS = {'stem', 'patch_embed'}
PREDICTORS = re.compile(
    r'.*(^|_)(cls|reg|seg|obj|score|centerness|classifier|prediction)'
    '|lm_head|qa_outputs|seq_relationship|head_dist'
)


def choose_layers(
    module: nn.Module,
    family: str,
    include: Sequence[str] | None,
    exclude: Sequence[str],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Choose the layers of a network to replace, see :func:`transform`.

    Returns:
        tuple[dict[str, nn.Module], dict[str, str]]: Layers by name, and the
        reasons against the other layers.
    """
    if plain_type(module) or isinstance(module, Composite):
        raise UserError(
            'The module is itself a layer, which cannot be '
            'replaced in place; give the one that holds it.'
        )
    found = dict(_layers(module))
    special = _left_alone(found) if include is None else {}
    nothing = 'no layer; there are'
    wanted = set(found)
    if include is not None:
        wanted = matching(include, found, nothing)
    wanted -= matching(exclude, found, nothing)
    owners: dict[int, list[str]] = {}
    for name, p in module.named_parameters(remove_duplicate=False):
        owners.setdefault(id(p), []).append(name.rpartition('.')[0])
    layers, skipped = {}, {}
    for name, layer in found.items():
        if name not in wanted:
            skipped[name] = 'not asked for'
        elif name in special:
            skipped[name] = special[name]
        elif reason := _obstacle(module, layer, family, owners):
            skipped[name] = reason
        else:
            layers[name] = layer
    return layers, skipped


def _layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules with weights, except norms and embeddings."""
    inside = ''
    for name, child in module.named_modules():
        if inside and name.startswith(inside):
            continue
        if isinstance(child, Composite):
            inside = f'{name}.'
            yield name, child
        elif isinstance(
            child, (_ConvNd, nn.Linear, nn.MultiheadAttention)
        ) or (
            not isinstance(child, (nn.Embedding, nn.LayerNorm))
            and not any(True for _ in child.children())
            and any(is_lazy(p) or p.dim() > 1 for p in child.parameters())
        ):
            yield name, child


def _left_alone(layers: Mapping[str, Any]) -> dict[str, str]:
    """Return the layers that only ``include`` replaces, with the reason."""
    found = {}
    for name, layer in layers.items():
        parts = name.split('.')
        if not plain_type(layer) or not isinstance(layer.weight, nn.Parameter):
            continue
        if STEMS & set(parts) or (
            isinstance(layer, _ConvNd) and channels_in(layer) <= 4
        ):
            found[name] = 'the stem, it reads the image'
        elif PREDICTORS.fullmatch(parts[-1]):
            found[name] = 'it gives predictions, as its name says'
        elif not layer.weight.requires_grad:
            found[name] = 'frozen: new weights would not train'
        elif not layer.weight.is_meta and not layer.weight.any():
            found[name] = 'its weight starts at zero, and a new one would not'
    last = list(layers)[-1] if layers else ''
    if isinstance(layers.get(last), nn.Linear) and CLASSIFIERS & set(
        last.split('.')
    ):
        found[last] = 'the classifier, the last layer'
    return found


def _obstacle(
    module: nn.Module, layer: Any, family: str, owners: Mapping[int, list[str]]
) -> str:
    """Return why a layer cannot be replaced, '' if it can."""
    kind = type(layer).__name__
    if isinstance(layer, (Composite, Wide)):
        return f'a {kind} layer already'
    if plain_type(layer) is None:
        return (
            f'of type {kind}, which may not use its weight as a '
            'plain layer does'
        )
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
        if family_of(family).composite and _reads_weight(
            module.get_submodule(owner), attribute
        ):
            return 'its weight is read by the module that holds it'
    return ''


def _reads_weight(owner: nn.Module, name: str) -> bool:
    """Return whether a module's forward reads a layer's weight itself.

    Torchvision's Swin does, with ``qkv``. Functions that forward calls are
    not searched: there, reading a composite layer's weight is an error.
    """
    try:
        source = inspect.getsource(type(owner).forward)
    except (OSError, TypeError):
        return False
    return f'self.{name}.weight' in source
