"""Types of a config's values, by the signature of MMEngine's Runner."""

import inspect
from collections.abc import Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from sift_mm.errors import UserError

# Keys of a model that hold the config of one module; a neck may be a list.
MODULES = ('backbone', 'neck', 'head', 'data_preprocessor')
# Arguments of the Runner that accept more than their type hint.
FREE = ('cfg', 'log_level')
NAMES = {dict: 'a dict', list: 'a list', str: 'a string', bool: 'a bool'}


def check(fits: bool, key: str, value: object, what: str) -> None:
    """Raise a :class:`UserError` unless a value fits, with key and value."""
    if not fits:
        text = repr(value)
        text = text if len(text) < 80 else f'{text[:70]}...'
        raise UserError(
            f'{key} has to be {what}, not {text} ({type(value).__name__}).'
        )


def check_types(cfg: Config) -> None:
    """Refuse a value whose type MMEngine's Runner does not take.

    Raises:
        UserError: For the first wrong value, with its key.
    """
    for name, parameter in inspect.signature(Runner).parameters.items():
        kinds = _kinds(parameter.annotation)
        value = cfg.get(name)
        if value is not None and kinds and name not in FREE:
            words = [NAMES[kind] for kind in kinds if kind in NAMES]
            check(isinstance(value, kinds), name, value, ' or '.join(words))
    model = cfg.get('model')
    if isinstance(model, dict):
        check_type(model, 'model')
        for key in MODULES:
            node: Any = model.get(key)
            several = key == 'neck' and isinstance(node, (list, tuple))
            for one in node if several else [node]:
                check_node(one, f'model.{key}', key != 'data_preprocessor')
    for i, hook in enumerate(cfg.get('custom_hooks') or ()):
        fits = isinstance(hook, (dict, Hook))
        check(fits, f'custom_hooks.{i}', hook, 'a dict')
    for phase in ('train', 'val', 'test'):
        loader = cfg.get(f'{phase}_dataloader')
        if isinstance(loader, dict):
            key = f'{phase}_dataloader.dataset'
            _check_dataset(loader.get('dataset') or [], key)


def check_node(node: Any, key: str, typed: bool) -> None:
    """Refuse a module that is no dict, or lacks ``type`` if ``typed``."""
    if node is not None:
        check(isinstance(node, dict), key, node, 'a dict')
        if typed:
            check_type(node, key)


def check_type(node: Mapping[str, Any], key: str) -> None:
    """Refuse a module whose ``type`` is neither a name nor a class."""
    kind = node.get('type')
    if kind is None:
        raise UserError(f'{key} has no type; add the name of its class.')
    named = isinstance(kind, str) or callable(kind)
    check(named, f'{key}.type', kind, 'the name of a class')


def _check_dataset(node: Any, key: str) -> None:
    if isinstance(node, (list, tuple)):
        for i, child in enumerate(node):
            _check_dataset(child, f'{key}.{i}')
        return
    check(isinstance(node, dict), key, node, 'a dict')
    check_type(node, key)
    for name in ('dataset', 'datasets'):
        if node.get(name) is not None:
            _check_dataset(node[name], f'{key}.{name}')
    steps = node.get('pipeline')
    if steps is None:
        return
    check(isinstance(steps, (list, tuple)), f'{key}.pipeline', steps, 'a list')
    for i, step in enumerate(steps):
        place = f'{key}.pipeline.{i}'
        check(isinstance(step, dict) or callable(step), place, step, 'a dict')
        if isinstance(step, dict):
            check_type(step, place)


def _kinds(hint: Any) -> tuple[type, ...]:
    """Return the classes of a type hint, none for other hints."""
    if get_origin(hint) in (Union, UnionType):
        parts = [_kinds(part) for part in get_args(hint)]
        return tuple(dict.fromkeys(kind for part in parts for kind in part))
    kind = get_origin(hint) or hint
    if kind is type(None) or not isinstance(kind, type):
        return ()
    more: dict[Any, tuple[type, ...]] = {
        dict: (dict, Config),
        list: (list, tuple),
    }
    return more.get(kind, (kind,))
