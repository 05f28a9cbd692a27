"""Names for the parts of mask training, as a config writes them."""

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from sift_mm.errors import UserError
from sift_mm.validation import Choice, read_arguments

T = TypeVar('T')


def _key(name: str) -> str:
    return name.lower().replace('+', 'plus').replace('_', '').replace('-', '')


class Registry(Choice, Generic[T]):
    """Classes by name; upper and lower case, "-" and "_" do not matter.

    MMEngine's registry is not used, because this package needs only PyTorch.

    Args:
        kind (str): What is registered, for messages.
        base (type): Class of all objects that may be used in place of a name.
    """

    def __init__(self, kind: str, base: type[T]) -> None:
        self.kind = kind
        self.base = base
        self._classes: dict[str, type[T]] = {}

    def register(self, cls: type[T]) -> type[T]:
        """Register a class under its own name, as a decorator.

        Raises:
            ValueError: If another class has that name.
        """
        old = self._classes.get(_key(cls.__name__), cls)
        # A module that is imported again makes its classes anew.
        if _origin(old) != _origin(cls):
            raise UserError(
                f'The name of the {self.kind} {_origin(cls)} is taken by '
                f'{_origin(old)}; choose another one.'
            )
        self._classes[_key(cls.__name__)] = cls
        return cls

    @property
    def names(self) -> list[str]:
        """The registered names."""
        return [cls.__name__ for cls in self._classes.values()]

    @property
    def what(self) -> str:
        """The names, and how else one is given."""
        return (
            f'a {self.kind}, one of {", ".join(self.names)} or '
            'dict(type=one, ...)'
        )

    def accepts(self, value: Any) -> bool:
        """Return whether a value is a known name, a dict, or an object."""
        if isinstance(value, str):
            return _key(value) in self._classes
        return isinstance(value, (Mapping, self.base))

    def build(self, cfg: 'str | Mapping[str, Any] | T | None') -> T:
        """Build from a name, a ``dict(type=name, ...)``, or pass through.

        Raises:
            ValueError: If the name is unknown or the arguments do not fit.
        """
        if isinstance(cfg, self.base):
            return cfg
        kwargs = dict(cfg) if isinstance(cfg, Mapping) else {'type': cfg}
        name = kwargs.pop('type', None)
        cls = self._classes.get(_key(str(name)))
        if cls is None:
            if name is None:
                raise UserError(
                    f'No type of a {self.kind} is given; choose one of '
                    f'{", ".join(self.names)}.'
                )
            raise UserError(
                f'Unknown {self.kind} {name!r}; choose one of '
                f'{", ".join(self.names)}.'
            )
        return cls(**read_arguments(cls, kwargs, f'{self.kind} {name!r}'))


def _origin(cls: type) -> str:
    return f'{cls.__module__}.{cls.__qualname__}'
