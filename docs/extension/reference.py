"""Markdown of the reference pages, written from the code; needs no Sphinx."""

import argparse
import dataclasses
import importlib
import inspect
import re
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
# "    name (type): words", and deeper lines that continue it.
ENTRY = re.compile(r'^(\w+)(?: \(([^)]*)\))?: (.*)$')
# ":class:`Name`" and "``code``" of reStructuredText.
ROLE = re.compile(r':\w+:`~?([^`]+)`')


class Option(NamedTuple):
    """One option: name, type and meaning as documented, default as code."""

    name: str
    type: str
    meaning: str
    default: str


def read_arguments(docstring: str) -> dict[str, tuple[str, str]]:
    """Return type and meaning of each argument in a Google docstring."""
    section = re.search(
        r'^(?:Args|Attributes):\n(.*?)(?=^\S|\Z)', docstring, re.S | re.M
    )
    text = textwrap.dedent(section[1]) if section else ''
    found: dict[str, tuple[str, str]] = {}
    for line in text.splitlines():
        if match := ENTRY.match(line):
            name = match[1]
            found[name] = match[2] or '', match[3]
        elif found and line.startswith('    '):
            kind, meaning = found[name]
            found[name] = kind, f'{meaning} {line.strip()}'
    return found


def find_defaults(owner: Any) -> dict[str, Any]:
    """Return the default of each option of a dataclass or a function."""
    if not dataclasses.is_dataclass(owner):
        signature = inspect.signature(owner)
        return {n: p.default for n, p in signature.parameters.items()}
    defaults: dict[str, Any] = {}
    for field in dataclasses.fields(owner):
        defaults[field.name] = field.default
        if field.default_factory is not dataclasses.MISSING:
            defaults[field.name] = field.default_factory()
    return defaults


def read_options(*owners: Any) -> list[Option]:
    """Return the options of dataclasses and signatures, the first ones first.

    Raises:
        KeyError: If an option is missing in its owner's docstring.
    """
    options: dict[str, Option] = {}
    for owner in owners:
        words = read_arguments(inspect.getdoc(owner) or '')
        for name, default in find_defaults(owner).items():
            if name not in options and name in words:
                shown = write_default(default)
                options[name] = Option(name, *words[name], shown)
    return list(options.values())


def write_default(value: Any) -> str:
    """Return a default as a config writes it."""
    if value in (inspect._empty, dataclasses.MISSING):
        return 'required'
    kind = type(value)
    if not kind.__module__.startswith('sift_mm.'):
        return f'`{value!r}`'
    fields = vars(value) if dataclasses.is_dataclass(value) else {}
    options = ''.join(f', {key}={one!r}' for key, one in fields.items())
    name = repr(kind.__name__)
    return f'`dict(type={name}{options})`' if options else f'`{name}`'


def to_markdown(text: str) -> str:
    """Return the text of a docstring with Markdown's marks for code."""
    return ROLE.sub(r'`\1`', text).replace('``', '`')


def find_options() -> list[Option]:
    """Return the options of mask training, those of runs alone last."""
    from sift_mm.sparsity import MaskOptions, RunOptions

    return read_options(MaskOptions, RunOptions)


def parser_of(command: Callable[..., Any]) -> argparse.ArgumentParser:
    """Return the parser that a command reads its command line with."""

    class Reached(BaseException):
        """Signal that the parser is complete."""

    found = []

    def keep(parser: argparse.ArgumentParser, *_: Any) -> None:
        found.append(parser)
        raise Reached

    with mock.patch.object(argparse.ArgumentParser, 'parse_args', keep):
        try:
            command([])
        except Reached:
            pass
    return found[0]


def find_commands() -> Iterator[tuple[str, argparse.ArgumentParser, str]]:
    """Yield each console script with its parser and its module's docstring."""
    settings = tomllib.loads((ROOT / 'pyproject.toml').read_text())
    for script, target in settings['project']['scripts'].items():
        name, _, _ = target.partition(':')
        module = importlib.import_module(name)
        yield script, parser_of(module.main), inspect.getdoc(module) or ''


def is_shown(action: argparse.Action) -> bool:
    """Return True for an option that users set."""
    if action.dest == 'help' or action.help is argparse.SUPPRESS:
        return False
    return bool(action.help or action.default)


def describe_action(action: argparse.Action) -> str:
    """Return an option of a parser as an item of a definition list."""
    flags = ', '.join(f'`{flag}`' for flag in action.option_strings)
    value = action.metavar or (action.dest if not flags else '')
    if action.choices is not None:
        value = ' | '.join(map(str, action.choices))
    elif flags and action.nargs != 0 and not value:
        value = action.dest.upper()
    if isinstance(value, tuple):
        value = ' '.join(value)
    term = f'{flags} `{value}`' if flags and value else flags or f'`{value}`'
    text = (action.help or '').replace('%(default)s', str(action.default))
    shown = action.default not in (None, False, argparse.SUPPRESS, [])
    if shown and 'default' not in text and action.nargs != 0:
        text = f'{text} (default: `{action.default}`)'
    return f'{term}\n: {text.strip()}\n'


def write_options() -> str:
    """Return the options of mask training as a definition list."""
    return '\n'.join(
        f'**`{option.name}`** ({option.type}), default {option.default}\n'
        f': {to_markdown(option.meaning)}\n'
        for option in find_options()
    )


def write_command(name: str) -> str:
    """Return purpose and options of a command as a definition list."""
    parser, text = next(
        (parser, text)
        for script, parser, text in find_commands()
        if script == name
    )
    summary = text.split('\n\n')[0]
    items = [describe_action(a) for a in parser._actions if is_shown(a)]
    return '\n'.join([summary, '', *items])


def write_registry(path: str) -> str:
    """Return a table of the classes in a registry, given as 'module.NAME'."""
    module, _, name = path.rpartition('.')
    registry = getattr(importlib.import_module(module), name)
    rows = ['| name | summary |', '| --- | --- |']
    for cls in registry._classes.values():
        summary = (inspect.getdoc(cls) or '').split('\n\n')[0]
        text = to_markdown(' '.join(summary.split()))
        rows.append(f'| `{cls.__name__}` | {text} |')
    return '\n'.join(rows)
