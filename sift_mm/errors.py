"""Errors of users: the text says what is wrong, where, and what to do.

The command lines print the text of one and no traceback. Each is also the
built-in error that fits.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Value, file or config that is wrong, in one sentence."""


class UserTypeError(UserError, TypeError):
    """Object of a type that does not serve."""


class UserKeyError(UserError, KeyError):
    """Name that does not exist."""

    # KeyError would put the sentence in quotes.
    __str__ = Exception.__str__


class UserCallError(UserError, RuntimeError):
    """Call at a time, or on a machine, where it is not possible."""


@contextmanager
def located(where: str) -> Iterator[None]:
    """Add the name of an option to the errors raised inside."""
    try:
        yield
    except UserError as error:
        raise UserError(f'{where}: {error}') from error
