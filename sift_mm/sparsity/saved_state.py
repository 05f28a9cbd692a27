"""Check of a saved state of mask training."""

from collections.abc import Mapping
from typing import Any

from sift_mm.errors import UserError

# Version of the state; raised if older releases would misread it.
STATE_VERSION = 1


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
