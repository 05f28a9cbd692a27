"""Settings of the command line, applied to a config."""

import copy
import inspect
import re
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner

from sift_mm.config.channels import fit_channels
from sift_mm.config.checks import backbone_key
from sift_mm.config.conversion import convert, is_wrapped
from sift_mm.config.family_options import (
    MEMBER_ARGUMENTS,
    VARIANT,
    MemberOptions,
)
from sift_mm.config.nodes import type_name
from sift_mm.errors import UserError
from sift_mm.names import check_names

# Keys that a run reads, with the arguments of MMEngine's Runner.
TOP_LEVEL = (
    *inspect.signature(Runner).parameters,
    'custom_imports',
    'model_wrapper_cfg',
    'tta_model',
)
# Keys that the conversion replaces, so that they are set before it only.
FOUNDATIONS = (
    'model',
    'model.backbone',
    'model.backbone.type',
    'custom_hooks',
    'custom_imports',
)


def override(
    cfg: Config, settings: Mapping[str, Any], member: MemberOptions
) -> None:
    """Apply settings and options to a config; settings have priority.

    Settings are applied before the conversion, which depends on them, and
    again after it. Keys are those of the dense config: in a wrapped backbone,
    ``model.backbone.depth`` is the inner backbone's.

    Args:
        cfg (Config): Config, changed in place.
        settings (Mapping[str, Any]): Values by dotted key.
        member (MemberOptions): Member of the options.

    Raises:
        UserError: If a key has no place, or the member is invalid.
    """
    place = backbone_key(cfg)
    own = re.compile(rf'{place}\.({"|".join(MEMBER_ARGUMENTS)})\b')
    # A dense backbone lacks the arguments of a member.
    before = [
        key
        for key in settings
        if not member or (not own.match(key) and _fits(cfg, key))
    ]
    for key in before:
        _set(cfg, key, settings[key])
    if not member:
        return
    asked = {
        name: settings[key]
        for name in VARIANT
        if (key := f'{place}.{name}') in settings
    }
    convert(cfg, MemberOptions(**(member.given | asked)))
    fit_channels(cfg)
    for key, value in settings.items():
        if key not in before or key not in FOUNDATIONS:
            _set(cfg, key, value)


def _walk(cfg: Config, key: str) -> tuple[list[Any], list[str]]:
    """Return the existing nodes on the way to a key, and the key's parts.

    The config is the first node. Keys of a wrapped backbone lead to the inner
    backbone.
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
    """Return whether a key can be set: indices need their list."""
    nodes, parts = _walk(cfg, key)
    missing = parts[len(nodes) - 1 :]
    named = isinstance(nodes[-1], (Mapping, Config)) or _is_type(nodes)
    return not missing or (named and not any(map(str.isdecimal, missing)))


def _is_type(nodes: list[Any]) -> bool:
    """Return whether the last node is the name of a part of mask training.

    Such a name is short for ``dict(type=name)``.
    """
    hooks = (type_name(n) for n in nodes if isinstance(n, Mapping))
    return isinstance(nodes[-1], str) and 'SparseTrainingHook' in hooks


def _set(cfg: Config, key: str, value: Any) -> None:
    """Set one key, or raise a UserError if there is no place for it."""
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
        raise UserError(f'{option}: {why}.')
    if len(nodes) <= len(parts) and _is_type(nodes):
        nodes[-2][parts[len(nodes) - 2]] = ConfigDict(type=nodes[-1])
    try:
        # MMEngine removes `_delete_` from its argument.
        cfg.merge_from_dict({'.'.join(parts): copy.deepcopy(value)})
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f'{option}: {error}') from error
