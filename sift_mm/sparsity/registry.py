"""Names for the parts of mask training, as a config writes them."""

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from sift_mm.errors import Mistake

T = TypeVar('T')


def _key(name: str) -> str:
    return name.lower().replace('+', 'plus').replace('_', '').replace('-', '')


class Registry(Generic[T]):
    """Classes by name; upper and lower case, "-" and "_" do not matter.

    MMEngine's registry is not used, because this package needs only PyTorch.

    Args:
        kind (str): What is registered, for messages.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._classes: dict[str, type[T]] = {}

    def register(self, cls: type[T]) -> type[T]:
        """Class decorator: register a class under its own name.

        Raises:
            ValueError: If another class has that name.
        """
        old = self._classes.get(_key(cls.__name__), cls)
        # A module that is imported again makes its classes anew.
        if _origin(old) != _origin(cls):
            raise Mistake(
                f'The name of the {self.kind} {_origin(cls)} is taken by '
                f'{_origin(old)}; choose another one.'
            )
        self._classes[_key(cls.__name__)] = cls
        return cls

    @property
    def names(self) -> list[str]:
        """The registered names."""
        return [cls.__name__ for cls in self._classes.values()]

    def build(self, cfg: 'str | Mapping[str, Any] | T | None') -> T:
        """Build from a name, a ``dict(type=name, ...)``, or pass through.

        Raises:
            ValueError: If the name is unknown or the arguments do not fit.
        """
        if cfg is None or isinstance(cfg, str):
            cfg = {'type': cfg}
        if not isinstance(cfg, Mapping):
            return cfg
        kwargs = dict(cfg)
        name = kwargs.pop('type', None)
        cls: Callable[..., T] | None = self._classes.get(_key(str(name)))
        if cls is None:
            raise Mistake(
                f'Unknown {self.kind} {name!r}; choose one of '
                f'{", ".join(self.names)}.'
            )
        try:
            return cls(**kwargs)
        except TypeError as e:
            raise Mistake(f'{self.kind} {name!r}: {e}') from e


def _origin(cls: type) -> str:
    return f'{cls.__module__}.{cls.__qualname__}'
