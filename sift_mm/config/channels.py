"""The channels that neck and heads read, in a config.

Every module of the libraries says in a key that ends in ``in_channels`` how
wide the features are that it reads. Those that read the backbone follow it.
"""

import copy
import inspect
import re
from itertools import chain
from os.path import commonprefix
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from sift_mm.backbones import SparseIFTMixin
from sift_mm.config.arguments import refuse_unknown
from sift_mm.config.nodes import put, type_name, walk
from sift_mm.engine.checks import KEY, check_channels, find_misfit
from sift_mm.errors import Mistake

# What else a model has, beside its heads.
NO_HEADS = ('backbone', 'neck', 'data_preprocessor')

# A key below a module that says how wide what it reads is.
READS = re.compile(rf'\.\w*{KEY}(\.|$)')


def reader_channels(model: Any) -> dict[str, int]:
    """How wide what is read of the backbone is, by keys of a ``model``."""
    necks = model.get('neck') or []
    several = isinstance(necks, (list, tuple))
    for i, neck in enumerate(necks if several else [necks]):
        # One that says nothing, as a pooling, passes on what it gets.
        if found := _channels(neck, f'neck.{i}' if several else 'neck'):
            return found
    return _head_channels(model)


def _head_channels(model: Any) -> dict[str, int]:
    heads = {k: v for k, v in model.items() if k not in NO_HEADS}
    return dict(chain(*(_channels(v, k).items() for k, v in heads.items())))


def _channels(node: Any, key: str) -> dict[str, int]:
    return {
        key: number
        for key, number in walk(node, key)
        if type(number) is int and READS.search(key)
    }


def follow(model: Any, backbone: Any, dense: bool = False) -> dict[int, int]:
    """Let what reads a backbone follow its widths.

    Args:
        model (dict): ``model`` of a config, changed in place. It may be
            written for the dense network, for the one that it is now, or for
            one of another width: what explains the most of its numbers.
        backbone (nn.Module): A SparseIFTResNet.
        dense (bool): Whether to follow the widths of its dense network.

    Returns:
        dict[int, int]: The new number of channels for each old one.
    """
    goal, other = backbone.base_channels, backbone.dense_base_channels
    times = [width // goal for width in backbone.out_channels]
    if dense:
        goal, other = other, goal
    numbers = reader_channels(model)
    found = numbers.values()
    bases = [other, goal]
    bases += [n // t for n in found for t in reversed(times) if n % t == 0]

    def explained(one: int) -> int:
        return len(set(found) & {one * t for t in times})

    # Of several, the first: max keeps it.
    written = max(bases, key=explained)
    new = {written * t: goal * t for t in times}
    for key, number in numbers.items():
        put(model, key, new.get(number, number))
    return new


def build_backbone(cfg: Config) -> Any:
    """The backbone of a config, as :func:`build` builds it."""
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

    Raises:
        Mistake: If a layer cannot follow, see :func:`check_channels`.
    """
    # One of another type gives what its dense one does.
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
    old = _all_channels(cfg.model)
    new = follow(cfg.model, backbone, dense)
    while True:
        model = build(cfg)
        misfit = find_misfit(model, cfg)
        if misfit is None:
            return None
        name, reads, gets = misfit
        now = _all_channels(cfg.model)
        wrong = [
            key
            for key, was in old.items()
            if now[key] == reads
            and gets == (new.get(reads) if was == reads else was)
        ]
        if not wrong:
            return model
        # The one whose key has the most of the layer's name.
        key = max(wrong, key=lambda key: len(commonprefix([key, name])))
        put(cfg.model, key, gets)
        del old[key]  # Corrected once: two layers may not agree on it.


def _all_channels(model: Any) -> dict[str, int]:
    return reader_channels(model) | _head_channels(model)


def what_fits(cfg: Config, backbone: Any, misfit: tuple[str, int, int]) -> str:
    """What to write in a config that does not fit; '' if that is not known.

    The ``misfit`` is as :func:`find_misfit` has it.
    """
    name, reads, gets = misfit
    now = reader_channels(cfg.model)
    for key, number in now.items():
        path = [part for part in key.split('.')[:-1] if KEY not in part]
        if path != name.split('.')[: len(path)] or number != reads:
            continue
        fits = copy.deepcopy(cfg.model)
        if isinstance(backbone, SparseIFTMixin):
            follow(fits, backbone)
        new = {k: n for k, n in reader_channels(fits).items() if n != now[k]}
        if new.get(key) != gets:
            fits, new = copy.deepcopy(cfg.model), {key: gets}
            put(fits, key, gets)
        return ', '.join(dict.fromkeys(_written(fits, key) for key in new))
    return ''


def _written(model: Any, key: str) -> str:
    """A number, or the list that it is in, as a config has it."""
    nodes = dict(walk(model, 'model'))
    key = f'model.{key}'
    owner = key.rpartition('.')[0]
    if isinstance(nodes[owner], (list, tuple)):
        key = owner
    return f'{key}={nodes[key]}'


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
