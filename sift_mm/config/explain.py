"""Errors of the libraries in one sentence, with the config's key.

MMEngine and the libraries raise bare errors for a wrong config. The traceback
holds the node that was built and the registry that was searched.
"""

import inspect
import linecache
import os.path as osp
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from mmengine.config import Config
from mmengine.registry import Registry

from sift_mm.config.nodes import type_name, walk
from sift_mm.errors import UserError
from sift_mm.names import nearest
from sift_mm.validation import parameters

# Characters of a library's message that are printed.
LONGEST = 400
# Function of MMEngine that builds the module of a node.
BUILDER = 'build_from_cfg'
PHASES = ('train', 'val', 'test')
# Methods of MMEngine's Runner, and the key of the config that they read.
METHODS = {
    'setup_env': 'env_cfg',
    'set_randomness': 'randomness',
    'build_logger': 'log_level',
    'build_log_processor': 'log_processor',
    'build_visualizer': 'visualizer',
    'build_optim_wrapper': 'optim_wrapper',
    'build_param_scheduler': 'param_scheduler',
    'build_dataloader': '{phase}_dataloader',
    'build_evaluator': '{phase}_evaluator',
    'build_train_loop': 'train_cfg',
    'build_val_loop': 'val_cfg',
    'build_test_loop': 'test_cfg',
    'wrap_model': 'model_wrapper_cfg',
}
# Functions of MMEngine that read a config.
READERS = (
    *('_file2dict', '_parse_lazy_import'),
    *('_validate_py_syntax', '_is_lazy_import'),
)
NO_ARGUMENT = re.compile(r"unexpected keyword argument '(\w+)'")
NEEDED = re.compile(r'missing \d+ required [\w-]+ arguments?: (.*)')
NOT_REGISTERED = re.compile(r'^(\S+) is not in the (\S+)::(.+?) registry')


@contextmanager
def explained(path: str, cfg: Config | None = None) -> Iterator[None]:
    """Turn any error inside into a :class:`UserError` of one sentence.

    Args:
        path (str): Config file, named first in the sentence.
        cfg (Config, optional): Config that is checked or built.

    Raises:
        UserError: If anything is raised inside.
    """
    try:
        yield
    except UserError as error:
        text = str(error)
        if text.startswith(path):
            raise
        end = '' if text.endswith(('.', '?', '!')) else '.'
        raise UserError(f'{path}: {text}{end}') from error
    except Exception as error:
        raise UserError(f'{path}: {describe(error, cfg)}') from error


def describe(error: BaseException, cfg: Config | None = None) -> str:
    """Return error and key of a wrong config, in one sentence.

    Args:
        error (BaseException): Error of a library, with its traceback.
        cfg (Config, optional): Config, for errors outside MMEngine's
            builders.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    builds = any(frame.f_code.co_name == BUILDER for frame in frames)
    place = '' if builds else _place_in_file(error)
    if place:
        return f'{place}{_reason(error)}.'
    key, node = _place_in_config(frames, cfg, error)
    own = _registry_or_argument(error, frames, node)
    if own:
        return f'{key}: {own}' if key else own
    where = f'{key}: ' if key else ''
    if isinstance(error, ImportError):
        return f'{where}a package is missing or broken: {_reason(error)}.'
    kind = type_name(node) if isinstance(node, dict) else ''
    what = f'{kind} cannot be built: ' if kind else ''
    return (
        f'{where}{what}{_reason(error)}; correct it, or see by --traceback '
        'where it arose.'
    )


def one_line(error: BaseException) -> str:
    """Return the message of an error in one line, cut between words only."""
    # str() of a KeyError adds quotation marks.
    message = error.args[0] if isinstance(error, KeyError) else error
    text = ' '.join(str(message).split()).rstrip('.;:')
    if len(text) > LONGEST:
        text = f'{text[:LONGEST].rpartition(" ")[0]} (...)'
    return text


def _reason(error: BaseException) -> str:
    text = one_line(error)
    kind = type(error).__name__
    if isinstance(error, SyntaxError):
        line = ' '.join((error.text or '').split())
        return f'{error.msg}' + (f' in `{line}`' if line else '')
    if isinstance(error, AssertionError) and not text:
        *_, last = traceback.walk_tb(error.__traceback__)
        file = last[0].f_code.co_filename
        line = linecache.getline(file, last[1]).strip()
        return f'`{line}` does not hold ({osp.basename(file)}:{last[1]})'
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f'{error.strerror}: {error.filename}'
    if isinstance(error, KeyError):
        return text if ' ' in text else f'there is no {text}'
    if isinstance(error, (ImportError, UserError)):
        return text
    return f'{text} ({kind})' if text else kind


def _place_in_file(error: BaseException) -> str:
    """Return file and line of a config that does not run, with a colon."""
    files: list[str] = []
    place = ''
    for frame, line in traceback.walk_tb(error.__traceback__):
        code = frame.f_code
        if code.co_name == '<module>' and _is_config(frame):
            place = f'{code.co_filename}, line {line}'
        elif code.co_name in READERS:
            place = str(frame.f_locals.get('filename'))
            files.append(place)
    if isinstance(error, SyntaxError) and place and error.lineno:
        place = f'{files[-1]}, line {error.lineno}'
    named = [file for file in files if osp.isfile(file)]
    if isinstance(error, FileNotFoundError) and named and named != files:
        return f'{named[-1]}: a file of its _base_ is missing: '
    return place and f'{place}: '


def _is_config(frame: FrameType) -> bool:
    """Return whether a frame runs a config file for MMEngine."""
    caller = frame.f_back
    return caller is not None and caller.f_code.co_name in READERS


def _place_in_config(
    frames: list[FrameType], cfg: Config | None, error: BaseException
) -> tuple[str, Any]:
    """Return key and node of the module whose build failed.

    MMEngine copies the config; nodes are found by identity in every copy in
    the traceback.
    """
    known: dict[int, tuple[str, Any]] = {}
    configs = [cfg] if cfg is not None else []
    for frame in frames:
        found = frame.f_locals.values()
        configs += [value for value in found if isinstance(value, Config)]
    for config in configs:
        for key, node in walk(config._cfg_dict, ''):
            known[id(node)] = key.removeprefix('.'), node
    for frame in reversed(frames):
        if frame.f_code.co_name == BUILDER:
            node = frame.f_locals.get('cfg')
            if id(node) in known:
                return known[id(node)]
            # For a copy, take the only node of the same class.
            alike = {k: n for k, n in known.values() if _alike(n, node)}
            if len(alike) == 1:
                return alike.popitem()
        elif frame.f_code.co_name in METHODS:
            names = [frame.f_code.co_name for frame in frames]
            phase = next((p for p in PHASES if f'build_{p}_loop' in names), '')
            return METHODS[frame.f_code.co_name].format(phase=phase), None
    return _place_by_name(configs, frames, error)


def _alike(node: Any, built: Any) -> bool:
    """Return whether a node of the config has the class of a built one."""
    return (
        isinstance(node, dict)
        and isinstance(built, dict)
        and type_name(node) == type_name(built) != ''
    )


def _place_by_name(
    configs: list[Config], frames: list[FrameType], error: BaseException
) -> tuple[str, Any]:
    """Return the only node with the unknown argument or the class."""
    asked = NO_ARGUMENT.search(str(error))
    kinds = [
        type(frame.f_locals['self']).__name__
        for frame in reversed(frames)
        if 'self' in frame.f_locals
    ]
    for config in configs:
        nodes = [
            (key.removeprefix('.'), node)
            for key, node in walk(config._cfg_dict, '')
            if isinstance(node, dict)
        ]
        if asked:
            hits = [pair for pair in nodes if asked[1] in pair[1]]
            if len(hits) == 1:
                return hits[0]
        for kind in kinds:
            hits = [pair for pair in nodes if type_name(pair[1]) == kind]
            if len(hits) == 1:
                return hits[0]
    return '', None


def _registry_or_argument(
    error: BaseException, frames: list[FrameType], node: Any
) -> str:
    """Return the sentence on an unknown type or argument, else ''."""
    text = str(error.args[0]) if error.args else ''
    built = [f for f in frames if f.f_code.co_name == BUILDER]
    local = built[-1].f_locals if built else {}
    if isinstance(error, KeyError) and (hit := NOT_REGISTERED.match(text)):
        name, scope, kind = hit.groups()
        near = nearest(name, _registered(local.get('registry')))
        hint = (
            f'did you mean {near}?'
            if near
            else (
                'correct the name, or import the module that registers it by '
                'custom_imports.'
            )
        )
        return f'{name} is not in the {kind} registry of {scope}: {hint}'
    maker = local.get('obj_cls')
    if not isinstance(error, TypeError):
        return ''
    called = text.partition('(')[0].removesuffix('.__init__')
    kind = getattr(maker, '__name__', called)
    if hit := NO_ARGUMENT.search(text):
        near = nearest(hit[1], _names(maker))
        hint = f': did you mean {near}?' if near else '; leave it out.'
        return f'{kind} has no argument {hit[1]}{hint}'
    if hit := NEEDED.search(text):
        return f'{kind} needs the argument {hit[1]}; add it.'
    return ''


def _registered(registry: Registry | None) -> list[str]:
    """Return the names of a registry and its parents."""
    names: list[str] = []
    while registry is not None:
        names += registry.module_dict
        registry = registry.parent
    return names


def _names(maker: Any) -> list[str]:
    """Return the arguments of a class or function, none for None."""
    try:
        found = parameters(maker).values()
    except (TypeError, ValueError):
        return []
    fixed = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [p.name for p in found if p.kind not in fixed]
