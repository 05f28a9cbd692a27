"""Checked arguments: pydantic validates the hints, one sentence says why not.

A hint of a signature is a plain type, a ``Literal`` or one of the types here.
Their ``description`` completes the sentence "<argument> is ...".
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import cache, wraps
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
from annotated_types import MinLen, Predicate
from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import CoreSchema, core_schema
from torch import nn
from torch.optim import Optimizer

from sift_mm.errors import UserError
from sift_mm.names import check_names, nearest

F = TypeVar('F', bound=Callable[..., Any])

_CONFIG = ConfigDict(strict=True, arbitrary_types_allowed=True)


def _python(value: Any) -> Any:
    """Return a Python number for a NumPy scalar; keep anything else."""
    return value.item() if isinstance(value, np.generic) else value


def _number(value: Any) -> Any:
    """Return a Python number; pydantic would take a tensor for one too."""
    value = _python(value)
    if not isinstance(value, (int, float)):
        raise ValueError('no number')
    return value


class Choice:
    """Metadata of a hint: a name from a list that may still grow.

    Args:
        known (Callable): Returns the names.
    """

    def __init__(self, known: Callable[[], Iterable[str]]) -> None:
        self.known = known

    @property
    def names(self) -> list[str]:
        """The names, as users write them."""
        return list(self.known())

    @property
    def what(self) -> str:
        """The names in words, after "is"."""
        return f'one of {", ".join(map(repr, self.names))}'

    def accepts(self, value: Any) -> bool:
        """Return whether a value is one of the names, letter by letter."""
        return isinstance(value, str) and value in self.names

    def build(self, value: Any) -> Any:
        """Return what the argument becomes."""
        return value

    def __get_pydantic_core_schema__(self, *_: Any) -> CoreSchema:
        def validate(value: Any) -> Any:
            if not self.accepts(value):
                raise ValueError(self.what)
            return self.build(value)

        return core_schema.no_info_plain_validator_function(validate)


_Real = Annotated[
    float, BeforeValidator(_number), Strict(), Field(allow_inf_nan=False)
]
_Name = Annotated[str, Strict(), MinLen(1)]
_Sparsity = Annotated[_Real, Field(ge=0, lt=1)]

Share = Annotated[
    _Real, Field(ge=0, le=1, description='a share, a number in [0, 1]')
]
End = Annotated[
    _Real,
    Field(
        gt=0,
        le=1,
        description='the share of the optimizer steps until the last mask '
        'update, a number in (0, 1]',
    ),
]
Sparsity = Annotated[
    _Sparsity,
    Field(
        description='the share of weights that are zero, a number in [0, 1)'
    ),
]
Sparsities = Annotated[
    Mapping[_Name, _Sparsity],
    MinLen(1),
    Field(
        description='a sparsity in [0, 1) for each glob pattern, '
        'dict(pattern=sparsity, ...)'
    ),
]
Count = Annotated[
    int,
    Strict(),
    Field(ge=1, lt=2**63, description='a whole number of 64 bits, at least 1'),
]
Seed = Annotated[
    int,
    Strict(),
    Field(ge=0, lt=2**63, description='a whole number of 64 bits, at least 0'),
]
_Pixels = Annotated[int, BeforeValidator(_number), Strict(), Field(ge=1)]
Factor = Annotated[
    # Larger ones are infinite in float32.
    _Real, Field(ge=0, le=3e38, description='a number from 0 to 3e38')
]
Size = Annotated[
    tuple[_Pixels, _Pixels],
    Strict(False),
    Predicate(lambda v: not isinstance(v, (set, frozenset))),
    Field(
        description='height and width in pixels, two whole numbers, at least 1'
    ),
]
Globs = Annotated[
    Annotated[list[_Name], MinLen(1)]
    | Annotated[tuple[_Name, ...], MinLen(1)],
    Field(description='a list of glob patterns, at least one'),
]
#: Patterns of what is left out, which may be nothing.
AnyGlobs = Annotated[
    list[_Name] | tuple[_Name, ...],
    Field(description='a list of glob patterns'),
]
Groups = Annotated[
    Mapping[_Name, Mapping[str, Any]],
    Field(
        description='the options of some layers by glob pattern, '
        'dict(pattern=dict(algorithm=..., sparsity=...), ...)'
    ),
]
Node = Annotated[
    Any,
    Predicate(lambda v: isinstance(v, Mapping) and v.get('type') is not None),
    Field(description='the config of a module, dict(type=..., ...)'),
]
_WORDS: dict[Any, str] = {
    NoneType: 'None',
    bool: 'True or False',
    int: 'a whole number',
    float: 'a number',
    str: 'a string',
    nn.Module: 'a network',
    Optimizer: 'an optimizer of PyTorch',
}
_BOUNDED = {
    int: Annotated[int, Field(ge=-(2**63), lt=2**63)],
    float: Annotated[float, BeforeValidator(_number)],
}


@cache
def _adapter(hint: Any) -> TypeAdapter:
    for part in getattr(hint, '__metadata__', ()):
        if isinstance(part, Choice):
            # It validates alone; pydantic refuses settings for dataclasses.
            hint = Annotated[Any, part]
    return TypeAdapter(_BOUNDED.get(hint, hint), config=_CONFIG)


def _describe(hint: Any) -> tuple[str, list[str]] | None:
    """Return what a hint allows, in words, and the names that it knows.

    None for a hint of another library, which allows everything.
    """
    for part in getattr(hint, '__metadata__', ()):
        if isinstance(part, Choice):
            return part.what, part.names
        if words := getattr(part, 'description', None):
            return words, []
    if get_origin(hint) is Literal:
        names = list(get_args(hint))
        return f'one of {", ".join(map(repr, names))}', names
    if get_origin(hint) in (Union, UnionType):
        found = [_describe(one) for one in get_args(hint)]
        known = [part for part in found if part is not None]
        if len(known) < len(found):
            return None
        return ', or '.join(words for words, _ in known), [
            name for _, names in known for name in names
        ]
    return (_WORDS[hint], []) if hint in _WORDS else None


def read(name: str, value: Any, hint: Any) -> Any:
    """Return the value of an argument, as its type hint has it.

    A NumPy number becomes Python's, and what a config names is built.

    Raises:
        ValueError: If the hint does not allow the value.
    """
    value = _python(value)
    described = _describe(hint)
    if described is None:
        return value
    try:
        return _adapter(hint).validate_python(value)
    except ValidationError as error:
        causes = [e.get('ctx', {}).get('error') for e in error.errors()]
    for cause in causes:
        if isinstance(cause, UserError):
            raise UserError(f'{name}={value!r}: {cause}')
    words, names = described
    near = nearest(value, names)
    raise UserError(
        f'{name} is {words}; got {value!r}'
        + (f': did you mean {near!r}?' if near else '.')
    )


def parameters(maker: Any) -> dict[str, inspect.Parameter]:
    """Return the parameters of a class or a function, by name.

    A class whose ``__init__`` has ``**kwargs`` takes those of its bases too.
    A parameter of kind ``VAR_KEYWORD`` is left where any name may be given.
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
    """Return the arguments of a class or a function, checked by its hints.

    Messages call it ``who``, by default its own name.

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
            raise UserError(f'{who} needs the argument {name}.')
    return {
        name: read(name, value, named[name].annotation)
        if name in named
        else value
        for name, value in given.items()
    }


def checked(init: F) -> F:
    """Decorate an ``__init__``: check its arguments by its hints."""

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
