"""Checks of a saved state of mask training."""

from collections.abc import Mapping
from typing import Any

from sift_mm.errors import UserError

# Version of the state; raised if older releases would misread it.
STATE_VERSION = 1
#: Options that a resumed run may change, with a warning.
MAY_CHANGE = (
    'algorithm',
    'algorithm_options',
    'placement',
    'interval',
    'end',
    'drop_fraction',
    'execution',
)


def check_state(state: Mapping[str, Any]) -> None:
    """Refuse a state of a newer version, and one that is incomplete.

    Raises:
        ValueError: If it is either.
    """
    if state.get('version', STATE_VERSION) > STATE_VERSION:
        raise UserError(
            f'The state of the masks is of version {state["version"]} and '
            f'this release reads up to {STATE_VERSION}; update sift_mm.'
        )
    missing = {'masks', 'history', 'steps', 'seed'} - state.keys()
    missing |= {'ever', 'always'} - state.get('history', {}).keys()
    if missing:
        raise UserError(
            'This is not the whole state of a mask trainer: '
            f'{", ".join(sorted(missing))} missing.'
        )


def find_changes(
    now: Mapping[str, Any], then: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
    """Return the options that a resumed run changes.

    Args:
        now: State of the run's trainer.
        then: Saved state.

    Returns:
        list: Name of the option, saved value, new value.
    """
    changes = _compare(now, then)
    own, old = now.get('groups', {}), then.get('groups', {})
    layers: list[tuple[tuple[str, Any, Any], list[str]]] = []
    for name in {**own, **old}:
        layer = {**now, **own.get(name, {})}, {**then, **old.get(name, {})}
        for change in _compare(*layer):
            known = [names for other, names in layers if other == change]
            if known:
                known[0].append(name)
            elif change not in changes:
                layers.append((change, [name]))
    return changes + [
        (f'{", ".join(names)}: {key}', before, after)
        for (key, before, after), names in layers
    ]


def _compare(
    now: Mapping[str, Any], then: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
    """Return the options that differ, of a run or a layer."""
    return [
        (key, then[key], now[key])
        for key in MAY_CHANGE
        if key in then and key in now and then[key] != now[key]
    ]
