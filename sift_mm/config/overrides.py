"""Settings of the command line, applied to a config so that each holds."""

import copy
import inspect
import re
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from sift_mm.arguments import check_names
from sift_mm.config.channels import fit_channels
from sift_mm.config.conversion import convert, is_wrapped
from sift_mm.config.member import MEMBER_ARGUMENTS, VARIANT, MemberOptions
from sift_mm.config.nodes import hook_place
from sift_mm.errors import Mistake

# What a run reads from a config beside the arguments of MMEngine's Runner.
TOP_LEVEL = (
    *inspect.signature(Runner).parameters,
    'custom_imports',
    'model_wrapper_cfg',
    'tta_model',
)
# What the conversion builds upon: said before it, and not again.
FOUNDATIONS = (
    'model',
    'model.backbone',
    'model.backbone.type',
    'custom_hooks',
    'custom_imports',
)
OF_MEMBER = re.compile(rf'model\.backbone\.({"|".join(MEMBER_ARGUMENTS)})\b')
# A key with one of these says where weights come from.
SOURCES = ('load_from', 'init_cfg', 'pretrained')


def override(
    cfg: Config, settings: Mapping[str, Any], member: MemberOptions
) -> None:
    """Apply settings and options to a config.

    What the new network follows from, its depth say, is set before the
    conversion, and what is there only afterwards, a hook say, behind it.

    Settings are values by dotted key, as in the dense config:
    ``model.backbone.depth`` is that of the backbone that becomes sparse.

    Raises:
        Mistake: If a key makes no sense, or one of the two does not hold.
    """
    if not member:
        for key, value in settings.items():
            _set(cfg, key, value)
        return
    # Others only a Sparse-IFT backbone has.
    plain = [k for k in settings if not OF_MEMBER.match(k)]
    early = [k for k in plain if _fits(cfg, k)]
    for key in early:
        _set(cfg, key, settings[key])
    asked = {
        name: settings[key]
        for name in VARIANT
        if (key := f'model.backbone.{name}') in settings
    }
    convert(cfg, MemberOptions(**(asked | member.given)))
    for key, value in settings.items():
        said_once = key in FOUNDATIONS or _is_source(key)
        if key not in early or not said_once:
            _set(cfg, key, value)
    fit_channels(cfg)
    _check(cfg, settings, member)


def _is_source(key: str) -> bool:
    return any(part in SOURCES for part in key.split('.'))


def _walk(cfg: Config, key: str) -> tuple[list[Any], list[str]]:
    """The nodes on the way to a key, as far as there are any, and its parts.

    The config is the first node. In a wrapper a key of the backbone leads to
    where that is now.
    """
    parts = key.split('.')
    if parts[:2] == ['model', 'backbone'] and parts[2:] and is_wrapped(cfg):
        own = [*MEMBER_ARGUMENTS, 'backbone']
        if cfg.model.backbone.get('init_cfg') is not None:
            own += ['init_cfg']
        if parts[2] not in own:
            parts.insert(2, 'backbone')
    nodes: list[Any] = [cfg]
    for part in parts:
        node = nodes[-1]
        if isinstance(node, (list, tuple)):
            if not part.isdecimal() or int(part) >= len(node):
                break
            nodes.append(node[int(part)])
        elif isinstance(node, (Mapping, Config)) and part in node:
            nodes.append(node[part])
        else:
            break
    return nodes, parts


def _fits(cfg: Config, key: str) -> bool:
    """Whether a key can be set: no index without its list."""
    nodes, parts = _walk(cfg, key)
    missing = parts[len(nodes) - 1 :]
    named = isinstance(nodes[-1], (Mapping, Config))
    return not missing or (named and not any(map(str.isdecimal, missing)))


def _set(cfg: Config, key: str, value: Any) -> None:
    """Set one key, or say why there is no place for it."""
    option = f'--cfg-options {key}={value}'
    nodes, parts = _walk(cfg, key)
    if len(parts) > 1 and parts[0] not in cfg:
        check_names(f'{option}: the config has no', parts[:1], TOP_LEVEL)
    if not _fits(cfg, key):
        here, there = nodes[-1], '.'.join(parts[: len(nodes) - 1])
        if isinstance(here, (list, tuple)):
            why = f'{there} has {len(here)} entries, counted from 0'
        elif there:
            why = f'{there} is {here!r} and has no {parts[len(nodes) - 1]}'
        else:
            why = f'the config has no {parts[0]}'
        raise Mistake(f'{option}: {why}.')
    try:
        # MMEngine takes `_delete_` out of what it is given.
        cfg.merge_from_dict({'.'.join(parts): copy.deepcopy(value)})
    except (TypeError, KeyError, AttributeError) as error:
        raise Mistake(f'{option}: {error}') from error


def _check(
    cfg: Config, settings: Mapping[str, Any], member: MemberOptions
) -> None:
    """Refuse a setting or an option that does not hold."""
    flags = {
        f'model.backbone.{name}': (f'--{name.replace("_", "-")}', value)
        for name, value in member.of_backbone.items()
    }
    own = ' '.join(f'{flag} {value}' for flag, value in flags.values())
    if member.pretrained is not None:
        key = 'model.backbone.init_cfg.checkpoint'
        flags[key] = ('--pretrained', member.pretrained)
    for name, value in member.of_hook.items():
        own_flag = name in ('algorithm', 'interval')
        key = f'custom_hooks.{hook_place(cfg)}.{name}'
        flags[key] = (f'--{name}' if own_flag else f'--hook {name}', value)
    for key, (flag, value) in flags.items():
        if key in settings and not _equal(settings[key], value):
            raise Mistake(
                f'{flag} {value} and --cfg-options {key}={settings[key]} '
                'contradict each other; leave one out.'
            )
    for key, value in settings.items():
        nodes, parts = _walk(cfg, key)
        found = nodes[-1] if len(nodes) > len(parts) else None
        if key in FOUNDATIONS or _equal(found, value):
            continue
        if _is_source(key) and member.pretrained is not None:
            own = f'--pretrained {member.pretrained}'
        raise Mistake(
            f'--cfg-options {key}={value} does not hold: with {own} it '
            f'becomes {found}; leave one out.'
        )


def _equal(found: Any, value: Any) -> bool:
    """Whether two values are the same, lists and tuples being alike."""
    if isinstance(value, Mapping) and isinstance(found, Mapping):
        return all(
            _equal(found.get(k), v)
            for k, v in value.items()
            if k != '_delete_'
        )
    if isinstance(value, (list, tuple)) and isinstance(found, (list, tuple)):
        return len(found) == len(value) and all(map(_equal, found, value))
    return bool(found == value)
