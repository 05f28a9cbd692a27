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
from mmengine.runner import Runner

from sift_mm.config.nodes import type_name, walk
from sift_mm.errors import UserError
from sift_mm.names import nearest
from sift_mm.validation import parameters

# Characters of a library's message that are printed.
LONGEST = 400
# Function of MMEngine that builds the module of a node.
BUILDER = 'build_from_cfg'
# Methods of MMEngine's Runner that read a part of the config.
METHOD = re.compile(r'build_(?!from)(\w+)|set(?:up)?_(env|randomness)')
# Keys of the config, where the method has another name.
KEYS = dict(env='env_cfg', logger='log_level')
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
    key, node = _place_in_config(frames, cfg)
    where = f'{key}: ' if key else ''
    if own := _registry_or_argument(error, frames):
        return f'{where}{own}'
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
        caller = frame.f_back
        if (
            code.co_name == '<module>'
            and caller is not None
            and caller.f_code.co_name in READERS
        ):
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


def _place_in_config(
    frames: list[FrameType], cfg: Config | None
) -> tuple[str, Any]:
    """Return key and node of the module whose build failed.

    MMEngine copies the config; nodes are found by identity in every copy in
    the traceback, or as the only one of their class.
    """
    values = [value for frame in frames for value in frame.f_locals.values()]
    known: dict[int, tuple[str, Any]] = {}
    for config in [cfg, *values]:
        if isinstance(config, Config):
            for key, node in walk(config._cfg_dict, ''):
                known[id(node)] = key.removeprefix('.'), node
    names = [frame.f_code.co_name for frame in frames]
    for frame, name in reversed([*zip(frames, names, strict=True)]):
        local = frame.f_locals
        kind = type(local.get('self')).__name__
        if name == BUILDER:
            node = local.get('cfg')
            if id(node) in known:
                return known[id(node)]
            kind = type_name(node) if isinstance(node, dict) else ''
        alike = {
            key: node
            for key, node in known.values()
            if isinstance(node, dict) and kind and type_name(node) == kind
        }
        if len(alike) == 1:
            return alike.popitem()
        hit = METHOD.fullmatch(name)
        if hit and frame.f_globals.get('__name__') == Runner.__module__:
            part = hit[1] or hit[2]
            if part in ('dataloader', 'evaluator'):
                loops = [n for n in names if n.endswith('_loop')]
                part = f'{loops[-1].split("_")[1]}_{part}' if loops else part
            return KEYS.get(part, part.replace('_loop', '_cfg')), None
    return '', None


def _registry_or_argument(
    error: BaseException, frames: list[FrameType]
) -> str:
    """Return the sentence on an unknown type or argument, else ''."""
    text = str(error.args[0]) if error.args else ''
    built = [f for f in frames if f.f_code.co_name == BUILDER]
    local = built[-1].f_locals if built else {}
    if isinstance(error, KeyError) and (hit := NOT_REGISTERED.match(text)):
        name, scope, kind = hit.groups()
        near = nearest(name, _registered(local.get('registry')))
        hint = (
            'correct the name, or import the module that registers it by '
            'custom_imports.'
        )
        hint = f'did you mean {near}?' if near else hint
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
