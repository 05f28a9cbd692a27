"""The channels that neck and heads read, in a config.

Every module of the libraries says in a key that ends in ``in_channels`` how
wide the features are that it reads. Those that read the backbone follow it.
"""

import copy
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from sift_mm.backbones import SparseIFTMixin
from sift_mm.config.arguments import refuse_unknown
from sift_mm.config.nodes import type_name
from sift_mm.engine.checks import KEY, check_channels, find_misfit
from sift_mm.errors import Mistake

# What else a model has, beside its heads.
NO_HEADS = ('backbone', 'neck', 'data_preprocessor')

Leaf = tuple[Any, Any, str]  # Its container, its place there, its whole key.


@dataclass
class InTuple:
    """A tuple of a config as what contains its numbers, which can be set.

    It stays a tuple, as some modules insist on.
    """

    node: Any
    name: str

    @property
    def numbers(self) -> tuple[Any, ...]:
        """The tuple as it is now."""
        return self.node[self.name]

    def __getitem__(self, place: int) -> Any:
        return self.numbers[place]

    def __setitem__(self, place: int, number: int) -> None:
        old = self.numbers
        self.node[self.name] = (*old[:place], number, *old[place + 1 :])


def reader_channels(model: Any) -> list[Leaf]:
    """Where a ``model`` says how wide what is read of the backbone is."""
    necks = model.get('neck') or []
    several = isinstance(necks, (list, tuple))
    for i, neck in enumerate(necks if several else [necks]):
        # One that says nothing, as a pooling, passes on what it gets.
        if found := list(_leaves(neck, f'neck.{i}' if several else 'neck')):
            return found
    return _head_channels(model)


def _head_channels(model: Any) -> list[Leaf]:
    return [
        leaf
        for name, node in model.items()
        if name not in NO_HEADS
        for leaf in _leaves(node, name)
    ]


def _leaves(node: Any, key: str, inside: bool = False) -> Iterator[Leaf]:
    """Numbers below keys that end in ``in_channels``."""
    if isinstance(node, dict):
        items: Any = list(node.items())
    elif isinstance(node, InTuple):
        items = list(enumerate(node.numbers))
    elif isinstance(node, list) or (isinstance(node, tuple) and not inside):
        items = list(enumerate(node))
    else:
        return
    for name, value in items:
        path = f'{key}.{name}'
        reads = inside or (isinstance(name, str) and name.endswith(KEY))
        if reads and isinstance(value, tuple) and isinstance(node, dict):
            value = InTuple(node, name)
        if isinstance(value, int) and not isinstance(value, bool):
            if reads:
                yield node, name, path
        else:
            yield from _leaves(value, path, reads)


def follow(model: Any, backbone: Any, dense: bool = False) -> dict[int, int]:
    """Let what reads a backbone follow its widths.

    The config may be written for the dense network, for the one that it is
    now, or for the same one of another width: the one that explains the most
    of its numbers.

    Args:
        model (dict): ``model`` of a config, changed in place.
        backbone (nn.Module): A SparseIFTResNet.
        dense (bool): Whether to follow the widths of its dense network.

    Returns:
        dict[int, int]: The new number of channels for each old one.
    """
    goal, other = backbone.base_channels, backbone.dense_base_channels
    times = [width // goal for width in backbone.out_channels]
    if dense:
        goal, other = other, goal
    leaves = reader_channels(model)
    found = [node[name] for node, name, _ in leaves]
    bases = [other, goal]
    bases += [n // t for n in found for t in reversed(times) if n % t == 0]

    def explained(one: int) -> int:
        return len(set(found) & {one * t for t in times})

    # Of several, the first: max keeps it.
    written = max(bases, key=explained)
    new = {written * t: goal * t for t in times}
    for node, name, _ in leaves:
        node[name] = new.get(node[name], node[name])
    return new


def build_backbone(cfg: Config) -> Any:
    """The backbone of a config, its weights without meaning.

    Raises:
        ValueError: If a type or an argument of the config is unknown.
    """
    return build(cfg, cfg.model.backbone)


def build(cfg: Config, node: Any = None) -> nn.Module:
    """Builds the model of a config, or a node of it.

    Weights of ``init_cfg`` are not loaded, and the random state of the run is
    left alone.

    Raises:
        Mistake: If a type or an argument of the config is unknown.
    """
    # Launching reads configs, and that makes them sparse.
    from sift_mm.engine.launch import replace_sync_norms

    node = copy.deepcopy(cfg.model if node is None else node)
    replace_sync_norms(node)  # Some want a process group to be built.
    scope = cfg.get('default_scope', 'mmengine')
    with (
        DefaultScope.overwrite_default_scope(scope),
        torch.random.fork_rng(devices=[]),
    ):
        try:
            return MODELS.build(node)
        except ValueError:  # What sift_mm says is one.
            raise
        except Exception as error:
            # A word is misspelt, a package or a file of the model is missing.
            refuse_unknown(cfg, error)
            # A KeyError as a string has quotation marks.
            words = error.args[0] if isinstance(error, KeyError) else error
            reason = str(words).partition('\n')[0] or type(error).__name__
            raise Mistake(
                f'the {node.get("type")} of the config cannot be built: '
                f'{reason}'
            ) from error


def fit_channels(cfg: Config) -> None:
    """Let neck and heads read what the backbone gives, in place.

    A backbone of another type than SparseIFTResNet gives what its dense one
    does.

    Raises:
        Mistake: If a layer cannot follow, see :func:`check_channels`.
    """
    if 'SparseIFTResNet' not in str(cfg.model.get('backbone', {}).get('type')):
        return
    unfit = _fit(cfg, build_backbone(cfg))
    if unfit is not None:
        check_channels(unfit, cfg)


def _fit(cfg: Config, backbone: Any, dense: bool = False) -> nn.Module | None:
    """As :func:`follow`, for a whole config; the model if it does not fit.

    A trial run shows what numbers do not: a part of a head may read another
    part, of a width that the backbone has too, and a neck may pass features
    on to a head.
    """
    old = {k: n[i] for n, i, k in _all_channels(copy.deepcopy(cfg.model))}
    new = follow(cfg.model, backbone, dense)
    while True:
        model = build(cfg)
        misfit = find_misfit(model, cfg)
        if misfit is None:
            return None
        name, reads, gets = misfit
        wrong = {
            key: (node, place)
            for node, place, key in _all_channels(cfg.model)
            if key in old  # Corrected once: two layers may not agree on it.
            and node[place] == reads
            and gets == (new.get(reads) if old[key] == reads else old[key])
        }
        if not wrong:
            return model
        # The one whose key has the most of the layer's name.
        key = max(wrong, key=lambda key: len(commonprefix([key, name])))
        node, place = wrong[key]
        node[place] = gets
        del old[key]


def _all_channels(model: Any) -> list[Leaf]:
    leaves = [*reader_channels(model), *_head_channels(model)]
    return list({key: (node, i, key) for node, i, key in leaves}.values())


def fitted(cfg: Config, backbone: Any) -> dict[str, tuple[str, int]]:
    """Numbers that fit, for those of a config that do not, by whole key.

    Before each stands what to write, as :func:`written` has it.
    """
    if not isinstance(backbone, SparseIFTMixin):
        return {}
    now, then = copy.deepcopy(cfg.model), copy.deepcopy(cfg.model)
    follow(then, backbone)
    return {
        key: (written(fits), fits[0][fits[1]])
        for (node, place, key), fits in zip(
            reader_channels(now), reader_channels(then), strict=True
        )
        if node[place] != fits[0][fits[1]]
    }


def written(leaf: Leaf) -> str:
    """A number, or the list that it is in, as a config has it."""
    node, place, key = leaf
    if isinstance(node, InTuple):
        return f'model.{key.rpartition(".")[0]}={node.numbers}'
    if isinstance(node, list):
        return f'model.{key.rpartition(".")[0]}={list(node)}'
    return f'model.{key}={node[place]}'


def dense_config(cfg: Config) -> Config:
    """The config of the dense network, in a copy.

    A backbone of Sparse-IFT becomes the library's own, and neck and heads
    read that.
    """
    cfg = copy.deepcopy(cfg)
    backbone = cfg.model.get('backbone') or {}
    kind = type_name(backbone)
    if kind == 'SparseIFT':
        cfg.model.backbone = backbone['backbone']
    elif kind.startswith('SparseIFT'):
        wide = build_backbone(cfg)
        own = inspect.signature(SparseIFTMixin).parameters.items()
        for name, argument in own:
            if argument.kind is argument.KEYWORD_ONLY:
                backbone.pop(name, None)
        _fit(cfg, wide, dense=True)
    return cfg


def build_dense(cfg: Config) -> nn.Module:
    """Builds the dense network of :func:`dense_config`."""
    return build(dense_config(cfg))
