"""Names that users write: the nearest known one, glob patterns, refusals."""

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from sift_mm.errors import UserError


def nearest(name: object, known: Iterable[str]) -> str | None:
    """Return the known name that is most like another, or None."""
    folded = {one.casefold(): one for one in known}
    found = difflib.get_close_matches(str(name).casefold(), folded, 1)
    return folded[found[0]] if found else None


def shortened(names: Iterable[object], most: int = 5) -> str:
    """Return the first names and the number of the others, or 'none'.

    >>> shortened('abc', 2), shortened('abc')
    ('a, b and 1 more', 'a, b, c')
    """
    found = [*map(str, names)]
    more = f' and {len(found) - most} more' if len(found) > most else ''
    return (', '.join(found[:most]) or 'none') + more


def matching(
    patterns: Sequence[str], names: Iterable[str], nothing: str
) -> set[str]:
    """Return the names that glob patterns match.

    Raises:
        ValueError: If a pattern matches no name, but ``nothing``.
    """
    if isinstance(patterns, str):
        raise UserError(
            'include and exclude take lists of patterns; write '
            f'[{patterns!r}].'
        )
    found = set()
    for pattern in patterns:
        hits = {name for name in names if fnmatchcase(name, pattern)}
        if not hits:
            raise UserError(
                f'The pattern {pattern!r} matches {nothing}: '
                f'{", ".join(names)}.'
            )
        found |= hits
    return found


def first_matches(
    patterns: Iterable[str], names: Iterable[str], what: str
) -> dict[str, str]:
    """Return the first glob pattern that matches each name, where one does.

    Args:
        patterns (Iterable[str]): Patterns in their order.
        names (Iterable[str]): Names of masked parameters.
        what (str): Option of the patterns, for messages.

    Raises:
        ValueError: If a pattern is the first match of no name.
    """
    patterns, names, found = list(patterns), list(names), {}
    for name in names:
        hits = (one for one in patterns if fnmatchcase(name, one))
        if (first := next(hits, None)) is not None:
            found[name] = first
    for pattern in patterns:
        if pattern in found.values():
            continue
        if any(fnmatchcase(name, pattern) for name in names):
            raise UserError(
                f'{what}: patterns before {pattern!r} match all that it '
                'matches, and the first match counts; write it before them.'
            )
        near = difflib.get_close_matches(pattern, names, cutoff=0)
        raise UserError(
            f'{what}: {pattern!r} matches no masked parameter; the nearest '
            f'are {", ".join(near)}.'
        )
    return found


def check_names(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raise ValueError at an unknown name, and name the nearest."""
    known = list(known)
    for name in names:
        if name not in known:
            near = nearest(name, known)
            others = f'there are {", ".join(known) or "none"}.'
            hint = f'did you mean {near}?' if near else others
            raise UserError(f'{what} {name}: {hint}')
