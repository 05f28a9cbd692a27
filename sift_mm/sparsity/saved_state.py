"""Checks of a saved state of mask training."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from sift_mm.checkpoint.packing import count
from sift_mm.checkpoint.state import VERSION
from sift_mm.errors import UserError
from sift_mm.names import shortened
from sift_mm.sparsity.counts import OPTIONS_OF_COUNTS
from sift_mm.sparsity.initializers import count_tolerance

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
    if state.get('version', VERSION) > VERSION:
        raise UserError(
            f'The state of the masks is of version {state["version"]} and '
            f'this release reads up to {VERSION}; update sift_mm.'
        )
    missing = {'masks', 'history', 'steps', 'seed'} - state.keys()
    missing |= {'ever', 'always'} - state.get('history', {}).keys()
    if missing:
        raise UserError(
            'This is not the whole state of a mask trainer: '
            f'{", ".join(sorted(missing))} missing.'
        )


def check_counts(
    masks: Mapping[str, Tensor],
    expected: Mapping[str, int],
    costs: Mapping[str, float] | None = None,
) -> None:
    """Refuse saved masks with another sparsity than a run's.

    Args:
        masks (Mapping): Saved masks by name.
        expected (Mapping): Active weights that the run asks for, by name.
        costs (Mapping, optional): FLOPs of a weight, where an initializer of
            the whole network gave the layers other counts of the same FLOPs;
            empty if they are unknown.

    Raises:
        ValueError: If the active weights of a layer differ by more than
            :func:`count_tolerance`, or their FLOPs by a hundredth and the
            rounding of structures.
    """
    found = {name: count(mask) for name, mask in masks.items()}
    if costs is not None:
        have = sum(found[name] * costs.get(name, 0) for name in found)
        asked = sum(expected[name] * costs.get(name, 0) for name in expected)
        # A structure rounds a layer by half a weight of each filter, at most.
        filters = sum(costs.get(n, 0) * len(m) for n, m in masks.items())
        if abs(have - asked) > 0.01 * asked + filters / 2:
            raise UserError(
                f'The saved masks have {have / asked:.3f} of the FLOPs that '
                'the sparsity asks for; use the sparsity and structure of '
                'that run.'
            )
        return
    wrong = [
        name
        for name, mask in masks.items()
        if abs(found[name] - expected.get(name, found[name]))
        > count_tolerance(mask.numel())
    ]
    if wrong:
        name = wrong[0]
        raise UserError(
            'The saved masks do not have the sparsity that this run asks '
            f'for: {len(wrong)} of {len(expected)} layers differ, {name!r} '
            f'has {found[name]} active weights and is to have '
            f'{expected[name]}. Use {OPTIONS_OF_COUNTS}.'
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
    for (key, before, after), names in layers:
        changes.append((f'{shortened(names, 3)}: {key}', before, after))
    return changes


def _compare(
    now: Mapping[str, Any], then: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
    """Return the options that differ, of a run or a layer."""
    return [
        (key, then[key], now[key])
        for key in MAY_CHANGE
        if key in then and key in now and then[key] != now[key]
    ]
