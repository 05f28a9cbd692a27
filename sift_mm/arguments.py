"""What arguments may be: kinds, which the signatures name.

A ``Literal``, a plain type, or one of the kinds here. A name from a config
that does not exist, and a value that cannot be meant, are then refused in
one sentence.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import wraps
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
)

import numpy as np
from torch import nn
from torch.optim import Optimizer

from sift_mm.errors import Mistake

F = TypeVar('F', bound=Callable[..., Any])


class Kind:
    """What an argument may be; kept in ``Annotated``.

    Attributes:
        what (str): In words, after "is".
        names (Iterable[str]): The words that it may be, if it is one of some.
    """

    what: str
    names: Iterable[str] = ()

    def accepts(self, value: Any) -> bool:
        """Whether a value is of this kind."""
        raise NotImplementedError

    def build(self, value: Any) -> Any:
        """What the argument becomes."""
        return value


@dataclass(frozen=True)
class Check(Kind):
    """What passes a test, described by ``what``."""

    what: str
    test: Callable[[Any], bool]

    def accepts(self, value: Any) -> bool:
        """Whether it passes."""
        return self.test(value)


@dataclass(frozen=True)
class OneOf(Kind):
    """One of some words, asked for when needed: more may be registered."""

    known: Callable[[], Sequence[str]]

    @property
    def names(self) -> Sequence[str]:  # type: ignore[override]
        """The words."""
        return self.known()

    @property
    def what(self) -> str:  # type: ignore[override]
        """All of them."""
        return f'one of {", ".join(map(repr, self.names))}'

    def accepts(self, value: Any) -> bool:
        """Whether it is one of them, letter by letter."""
        return isinstance(value, str) and value in self.names


def _is_number(value: Any) -> bool:
    numbers = (int, float, np.integer, np.floating)
    return isinstance(value, numbers) and not isinstance(value, bool)


def _is_whole(value: Any, least: int = 1) -> bool:
    """Whether it is a whole number of 64 bits, which all that read it take."""
    whole = isinstance(value, (int, np.integer))
    return whole and not isinstance(value, bool) and least <= value < 2**63


def _is_list(value: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, (list, tuple)) and all(map(holds, value))


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != ''


def _is_sparsity(value: Any) -> bool:
    return _is_number(value) and 0 <= value < 1


# nan is in no range.
Share = Annotated[
    float,
    Check(
        'a share, a number in [0, 1]', lambda v: _is_number(v) and 0 <= v <= 1
    ),
]
End = Annotated[
    float,
    Check(
        'the share of the optimizer steps until the last mask update, a '
        'number in (0, 1]',
        lambda v: _is_number(v) and 0 < v <= 1,
    ),
]
Sparsity = Annotated[
    float,
    Check(
        'the share of weights that are zero, a number in [0, 1)', _is_sparsity
    ),
]
Sparsities = Annotated[
    Mapping[str, float],
    Check(
        'a sparsity in [0, 1) for each glob pattern, '
        'dict(pattern=sparsity, ...)',
        lambda v: (
            isinstance(v, Mapping)
            and len(v) > 0
            and all(map(_is_name, v))
            and all(map(_is_sparsity, v.values()))
        ),
    ),
]
Count = Annotated[
    int, Check('a whole number of 64 bits, at least 1', _is_whole)
]
Seed = Annotated[
    int,
    Check('a whole number of 64 bits, at least 0', lambda v: _is_whole(v, 0)),
]
Size = Annotated[
    tuple[int, int],
    Check(
        'height and width in pixels, two whole numbers, at least 1',
        lambda v: _is_list(v, _is_whole) and len(v) == 2,
    ),
]
Globs = Annotated[
    Sequence[str],
    Check(
        'a list of glob patterns, at least one',
        lambda v: _is_list(v, _is_name) and len(v) > 0,
    ),
]
# Of what is left out, which may be nothing.
AnyGlobs = Annotated[
    Sequence[str],
    Check('a list of glob patterns', lambda v: _is_list(v, _is_name)),
]
Node = Annotated[
    Mapping[str, Any],
    Check(
        'the config of a module, dict(type=..., ...)',
        lambda v: isinstance(v, Mapping) and v.get('type') is not None,
    ),
]
_PLAIN: dict[Any, Kind] = {
    NoneType: Check('None', lambda v: v is None),
    bool: Check('True or False', lambda v: isinstance(v, bool)),
    int: Check('a whole number', lambda v: _is_whole(v, -(2**63))),
    # nan is not itself.
    float: Check('a number', lambda v: _is_number(v) and v == v),
    str: Check('a string', lambda v: isinstance(v, str)),
    nn.Module: Check('a network', lambda v: isinstance(v, nn.Module)),
    Optimizer: Check(
        'an optimizer of PyTorch', lambda v: isinstance(v, Optimizer)
    ),
}


def _kind(hint: Any) -> Kind | None:
    """The kind that a type hint says; None if it says none."""
    for kind in getattr(hint, '__metadata__', ()):
        if isinstance(kind, Kind):
            return kind
    if get_origin(hint) is Literal:
        return OneOf(lambda: get_args(hint))
    return _PLAIN.get(hint) if isinstance(hint, type) else None


def read(name: str, value: Any, hint: Any) -> Any:
    """The value of an argument, if its type hint allows it.

    A hint that says no kind allows everything; a number of NumPy becomes one
    of Python, and what a config names is built.

    Raises:
        ValueError: If it is nothing that it may be.
    """
    if isinstance(value, np.generic):
        value = value.item()
    union = get_origin(hint) in (Union, UnionType)
    kinds = [_kind(one) for one in (get_args(hint) if union else (hint,))]
    known = [kind for kind in kinds if kind is not None]
    if len(known) < len(kinds):
        return value
    for kind in known:
        if kind.accepts(value):
            try:
                return kind.build(value)
            except Mistake as error:
                raise Mistake(f'{name}={value!r}: {error}') from None
    what = ', or '.join(kind.what for kind in known)
    hint = nearest(value, [word for kind in known for word in kind.names])
    raise Mistake(
        f'{name} is {what}; got {value!r}'
        + (f': did you mean {hint!r}?' if hint else '.')
    )


def parameters(maker: Any) -> dict[str, inspect.Parameter]:
    """What a class or a function can be given by name.

    A class whose ``__init__`` has ``**kwargs`` takes what those of its bases
    do, too; one of kind ``VAR_KEYWORD`` is left where any name may be given.
    """
    if inspect.isclass(maker):
        return _inherited(maker.__mro__)
    return dict(_signature(maker).parameters)


def _inherited(classes: Iterable[type]) -> dict[str, inspect.Parameter]:
    found: dict[str, inspect.Parameter] = {}
    for cls in classes:
        if '__init__' not in vars(cls) or cls is object:
            continue
        _, *own = _signature(vars(cls)['__init__']).parameters.values()
        found = {n: p for n, p in found.items() if p.kind != p.VAR_KEYWORD}
        found = {p.name: p for p in own} | found
        if all(p.kind != p.VAR_KEYWORD for p in own):
            break
    return found


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function, eval_str=True)
    except NameError:  # A hint's name is imported for type checkers alone.
        return inspect.signature(function)


def read_arguments(
    maker: Any, given: Mapping[str, Any], who: str | None = None
) -> dict[str, Any]:
    """The arguments of a class or a function, as :func:`read` has them.

    In messages its name is ``who``, by default its own.

    Raises:
        ValueError: If there is no such argument, one is missing, or one is
            not what it may be.
    """
    return _read_all(who or maker.__name__, parameters(maker), given)


def _read_all(
    who: str, known: Mapping[str, inspect.Parameter], given: Mapping[str, Any]
) -> dict[str, Any]:
    named = {
        name: p
        for name, p in known.items()
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }
    if all(p.kind != p.VAR_KEYWORD for p in known.values()):
        check_names(f'{who} has no argument', given, named)
    for name, p in named.items():
        if p.default is p.empty and name not in given:
            raise Mistake(f'{who} needs the argument {name}.')
    return {
        name: read(name, value, named[name].annotation)
        if name in named
        else value
        for name, value in given.items()
    }


def checked(init: F) -> F:
    """Decorator of an ``__init__``: its arguments are what its hints say."""

    @wraps(init)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
        classes = list(type(self).__mro__)
        while vars(classes[0]).get('__init__') is not wrapper:
            del classes[0]
        own = inspect.signature(init).parameters.values()
        places = [p.name for p in own if p.kind == p.POSITIONAL_OR_KEYWORD]
        placed = dict(zip(places[1:], args, strict=False))
        given = _read_all(
            type(self).__name__, _inherited(classes), {**placed, **kwargs}
        )
        placed = {name: given.pop(name) for name in placed}
        init(self, *placed.values(), *args[len(placed) :], **given)

    return cast(F, wrapper)


def nearest(name: object, known: Iterable[str]) -> str | None:
    """The known name that is most like another, if one is."""
    folded = {one.casefold(): one for one in known}
    found = difflib.get_close_matches(str(name).casefold(), folded, 1)
    return folded[found[0]] if found else None


def matching(
    patterns: Sequence[str], names: Iterable[str], nothing: str
) -> set[str]:
    """The names that glob patterns match.

    Raises:
        ValueError: If a pattern matches no name, but ``nothing``.
    """
    if isinstance(patterns, str):
        raise Mistake(
            'include and exclude take lists of patterns; write '
            f'[{patterns!r}].'
        )
    found = set()
    for pattern in patterns:
        hits = {name for name in names if fnmatchcase(name, pattern)}
        if not hits:
            raise Mistake(
                f'The pattern {pattern!r} matches {nothing}: '
                f'{", ".join(names)}.'
            )
        found |= hits
    return found


def check_names(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raises ValueError at a name that is not known, with the nearest."""
    known = list(known)
    for name in names:
        if name not in known:
            near = nearest(name, known)
            others = f'there are {", ".join(known)}.'
            hint = f'did you mean {near}?' if near else others
            raise Mistake(f'{what} {name}: {hint}')
