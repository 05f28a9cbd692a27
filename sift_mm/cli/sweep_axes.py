"""Axes of a sweep: config keys with several values."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from mmengine.config import Config, DictAction

from sift_mm.config.checks import backbone_key, check_config
from sift_mm.config.explain import explained
from sift_mm.config.keys import find_key, hook_of, keys_of
from sift_mm.config.loading import read_config
from sift_mm.config.nodes import walk
from sift_mm.errors import UserError
from sift_mm.layers.family import family_of

# Arguments with an option of their own, which names the networks.
OPTIONS = ('family', 'sparsity', 'inner')


@dataclass(frozen=True)
class Axis:
    """Key of the config and its values.

    Attributes:
        key (str): Whole dotted key.
        values (tuple[str, ...]): Values, as for ``--cfg-options``.
        of_dense (bool): Whether the dense config has the key.
        of_hook (bool): Whether it is an argument of SparseTrainingHook.
    """

    key: str
    values: tuple[str, ...]
    of_dense: bool
    of_hook: bool


def has_masks(family: str) -> bool:
    """Return whether a member has masks by default."""
    return family_of(family).default_factors != 'none'


def split(text: str) -> list[str]:
    """Split values at the commas outside of brackets.

    >>> split('0.05,0.1'), split('(666,400),(1333,800)')
    (['0.05', '0.1'], ['(666,400)', '(1333,800)'])
    """
    found, depth = [''], 0
    for sign in text:
        depth += (sign in '([{') - (sign in ')]}')
        if sign == ',' and depth == 0:
            found.append('')
        else:
            found[-1] += sign
    return found


def read_axes(args: argparse.Namespace) -> list[Axis]:
    """Return the axes of a command line, with whole keys.

    Raises:
        UserError: If a key is unknown or ambiguous, has an option of its own
            or comes twice, or a value is missing or not possible.
    """
    if not args.axis:
        return []
    dense = read_config(args.dense)
    # A member without masks has no hook, whose arguments are keys too.
    masked = [name for name in args.family if has_masks(name)]
    member = dict(family=[*masked, *args.family][0], sparsity=args.sparsity[0])
    if masked:
        member['algorithm'] = args.algorithm[0]
    sparse = read_config(args.sparse, **member)
    known = set(keys_of(dense))
    axes: dict[str, Axis] = {}
    for text in args.axis:
        name, _, written = text.partition('=')
        option = f'--axis {text}'
        values = split(written)
        if '' in (name, *values):
            raise UserError(f'{option}: write it as KEY=VALUE,VALUE.')
        key = find_key(option, name, sparse, dense)
        hook, place = hook_of(sparse), backbone_key(sparse)
        own = {f'{place}.{name}': f'--{name}' for name in OPTIONS}
        own |= {
            f'{hook}.algorithm': '--algorithm',
            'randomness.seed': '--seeds',
        }
        if key in own:
            raise UserError(f'{option}: {key} is set by {own[key]}.')
        if key in axes:
            raise UserError(f'{option}: {key} is an axis already.')
        of_hook = hook is not None and key.startswith(f'{hook}.')
        of_dense = key in known and not of_hook
        axes[key] = Axis(key, tuple(values), of_dense, of_hook)
        if of_dense:
            _check_values(args, axes[key], dense, {})
        else:
            _check_values(args, axes[key], sparse, member)
    return [*axes.values()]


def _check_values(
    args: argparse.Namespace, axis: Axis, cfg: Config, member: dict[str, Any]
) -> None:
    """Refuse values that no config could have, and words for a number.

    Args:
        args (Namespace): The command line.
        axis (Axis): Axis with the values.
        cfg (Config): Config with the key.
        member (dict): Member of the family of that config.
    """
    top = axis.key.partition('.')[0]
    now = dict(walk(cfg.get(top), top)).get(axis.key)
    # The hook checks its own arguments.
    is_number = type(now) in (int, float) and not axis.of_hook
    path = args.dense if axis.of_dense else args.sparse
    for value in axis.values:
        option = f'--axis {axis.key}={value}'
        try:
            parsed = DictAction._parse_iterable(value)
        except AssertionError as error:
            raise UserError(f'{option}: {error}.') from None
        if is_number and isinstance(parsed, str):
            raise UserError(
                f'{option}: the config has the number {now} there; give a '
                'number.'
            )
        found = read_config(path, {axis.key: parsed}, **member)
        with explained(path, found):
            check_config(found)


def settings(
    axes: Sequence[Axis], dense: bool = False, masks: bool = True
) -> Iterator[tuple[str, ...]]:
    """Yield each combination of values, as KEY=VALUE.

    Args:
        axes (Sequence[Axis]): Axes of the sweep.
        dense (bool): Whether they are for the dense network.
        masks (bool): Whether the network has masks, and so the hook.
    """
    used = [
        axis
        for axis in axes
        if (axis.of_dense or not dense) and (masks or not axis.of_hook)
    ]
    for values in product(*(axis.values for axis in used)):
        yield tuple(
            f'{axis.key}={value}'
            for axis, value in zip(used, values, strict=True)
        )
