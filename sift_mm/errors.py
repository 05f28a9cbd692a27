"""Mistakes that are known: the text says what is wrong and what to do.

The command lines print the text of one and no traceback. Each is also the
built-in error that it would be elsewhere.
"""


class Mistake(ValueError):
    """A value, file or config that cannot be meant, in one sentence."""


class MistakenType(Mistake, TypeError):
    """An object of a kind that does not serve."""


class MistakenKey(Mistake, KeyError):
    """A name that is not there."""

    # That of KeyError puts the sentence in quotes.
    __str__ = Exception.__str__


class MistakenCall(Mistake, RuntimeError):
    """A call at a time, or on a machine, where it cannot be made."""
