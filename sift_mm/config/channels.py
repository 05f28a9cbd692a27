"""Input channels of neck and heads, in a config.

Modules of the libraries have a key ``*in_channels`` for the width of their
inputs. Modules that read the backbone follow its output channels.
"""

import copy
import re
from collections.abc import Iterable
from itertools import chain
from os.path import commonprefix
from typing import Any

from mmengine.config import Config
from torch import Tensor, nn

from sift_mm.backbones import SparseIFTMixin
from sift_mm.backbones.base import sparse_backbone
from sift_mm.config.building import build
from sift_mm.config.images import find_sizes
from sift_mm.config.nodes import set_at, type_name, walk
from sift_mm.errors import UserError
from sift_mm.flops import meta_image, on_meta, skip_norms, watched
from sift_mm.flops.model_forward import run_once

# Image sizes of trial runs, for configs without a size.
TRIALS = ((256, 256), (256, 128))
# Suffix of the keys that hold the input channels of a module.
KEY = 'in_channels'
# Keys of a model that are no heads.
NO_HEADS = ('backbone', 'neck', 'data_preprocessor')

# Pattern of the keys of input channels below a module.
READS = re.compile(rf'\.\w*{KEY}(\.|$)')


def reader_channels(model: Any) -> dict[str, int]:
    """Return the input channels of each neck and head, by config key."""
    necks = model.get('neck') or []
    several = isinstance(necks, (list, tuple))
    for i, neck in enumerate(necks if several else [necks]):
        # A neck without channels, as a pooling, passes them on.
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
    """Set the input channels of necks and heads to the backbone's outputs.

    Args:
        model (dict): ``model`` of a config, changed in place. It may be
            written for the dense network, the present one, or one of another
            width: the width that explains most of its numbers.
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

    # max keeps the first of several.
    written = max(bases, key=explained)
    new = {written * t: goal * t for t in times}
    for key, number in numbers.items():
        set_at(model, key, new.get(number, number))
    return new


def fit_channels(cfg: Config) -> None:
    """Set the channels of neck and heads in a config, in place.

    Raises:
        UserError: If a layer cannot follow, see :func:`check_channels`.
    """
    # Other backbones have the output channels of their dense twin.
    if 'SparseIFTResNet' not in type_name(cfg.model.get('backbone') or {}):
        return
    model, fits = fit(cfg, build(cfg, 'backbone'))
    if not fits:
        check_channels(model, cfg)


def fit(
    cfg: Config, backbone: Any, dense: bool = False
) -> tuple[nn.Module, bool]:
    """Apply :func:`follow` to a whole config; return its model, and success.

    A trial run shows layers that read other modules: a part of a head may read
    another part of the backbone's width, and a neck may pass features on.
    """
    old = _all_channels(cfg.model)
    new = follow(cfg.model, backbone, dense)
    while True:
        model = build(cfg)
        misfit = find_misfit(model, cfg)
        if misfit is None:
            return model, True
        name, reads, gets = misfit
        now = _all_channels(cfg.model)
        wrong = [
            key
            for key, was in old.items()
            if now[key] == reads
            and gets == (new.get(reads) if was == reads else was)
        ]
        if not wrong:
            return model, False
        # Take the key that shares most of the layer's name.
        key = max(wrong, key=lambda key: len(commonprefix([key, name])))
        set_at(cfg.model, key, gets)
        del old[key]  # Correct it once: two layers may disagree on it.


def _all_channels(model: Any) -> dict[str, int]:
    return reader_channels(model) | _head_channels(model)


def check_channels(model: nn.Module, cfg: Config) -> None:
    """Check the channels of a model with images without numbers.

    The images have the sizes of testing and training. A misfit has to appear
    at both: a layer may read channels and positions together.

    Raises:
        ValueError: If a layer gets another number of channels than it reads,
            with the values of the config that fit, if they are known.
    """
    found = sparse_backbone(model)
    if found is None or found[0] != 'backbone.':
        return
    backbone: Any = found[1]
    if (misfit := find_misfit(model, cfg)) is None:
        return
    name, reads, gets = misfit
    raise UserError(
        f'model.{name} reads {reads} channels and gets {gets}: the backbone '
        f'(family={backbone.family!r}, sparsity={backbone.sparsity}) gives '
        f'{getattr(backbone, "out_channels", "other")} channels; '
        f'{what_fits(cfg, backbone, misfit)}.'
    )


def find_misfit(model: nn.Module, cfg: Config) -> tuple[str, int, int] | None:
    """Return a layer whose input has the wrong number of channels.

    Args:
        model (nn.Module): Model with a ``backbone`` that fits itself.
        cfg (Config): Config with the image sizes.

    Returns:
        tuple[str, int, int], optional: Name of the layer, channels that it
        reads, and channels that it gets.
    """
    trial: Any = on_meta(model)
    skip_norms(trial.backbone)  # They take most of the time.
    misfit = None
    for shape in _shapes(cfg):
        channels = getattr(trial.backbone, 'image_channels', 3)
        now = _misfit_at(trial, shape, channels)
        if now is None or misfit not in (None, now):
            return None
        misfit = now
    return misfit


def _shapes(cfg: Config) -> Iterable[tuple[int, ...]]:
    """Return the image sizes of the config, or two default ones."""
    try:
        return dict.fromkeys(shape for shape, _ in find_sizes(cfg, None))
    except ValueError:
        return TRIALS


def _misfit_at(
    trial: nn.Module, shape: tuple[int, ...], channels: int
) -> tuple[str, int, int] | None:
    """Return the misfit of a model without numbers, see :func:`_misfit`.

    None also for other failures, which are no fault of the config.
    """
    running: list[tuple[str, Any, Any]] = []

    def enter(name: str, module: Any, args: Any) -> None:
        running.append((name, module, args))

    def leave(*_: Any) -> None:
        running.pop()

    try:
        with watched(trial, enter, leave):
            run_once(trial, meta_image(shape, channels), auxiliary=True)
    except Exception:
        return _misfit(*running[-1]) if running else None
    return None


def _misfit(name: str, module: Any, args: Any) -> tuple[str, int, int] | None:
    """Return a layer, its input channels and those of its input."""
    if not args or not isinstance(args[0], Tensor) or args[0].dim() < 2:
        return None
    gets = args[0].shape[-1 if hasattr(module, 'in_features') else 1]
    for key in ('in_channels', 'in_features', 'num_features', 'num_channels'):
        reads = getattr(module, key, None)
        if isinstance(reads, int):
            return (name, reads, gets) if reads != gets else None
    return None


def what_fits(cfg: Config, backbone: Any, misfit: tuple[str, int, int]) -> str:
    """Return the values to write in the config, where they are known.

    The ``misfit`` is that of :func:`find_misfit`.
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
            set_at(fits, key, gets)
        written = dict.fromkeys(_written(fits, key) for key in new)
        return f'write {", ".join(written)}'
    return (
        'no in_channels of the config is known to be its width, so that it '
        "cannot follow; family='parallel' leaves features as wide as they are"
    )


def _written(model: Any, key: str) -> str:
    """Return key and value of a number, or of the list that holds it."""
    nodes = dict(walk(model, 'model'))
    key = f'model.{key}'
    owner = key.rpartition('.')[0]
    if isinstance(nodes[owner], (list, tuple)):
        key = owner
    return f'{key}={nodes[key]}'
