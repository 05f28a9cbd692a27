"""Nodes of a config by their ``type``."""

from collections.abc import Mapping
from typing import Any


def type_name(cfg: Mapping[str, Any]) -> str:
    """Name in a config's ``type``: without scope, of a class its name."""
    kind = cfg.get('type', '')
    name = kind if isinstance(kind, str) else kind.__name__
    return name.rpartition('.')[2]


def hook_place(cfg: Mapping[str, Any]) -> int | None:
    """Index of SparseTrainingHook in ``custom_hooks``, None without one."""
    for i, hook in enumerate(cfg.get('custom_hooks') or []):
        if isinstance(hook, Mapping):  # Others are built already.
            if type_name(hook) == 'SparseTrainingHook':
                return i
    return None


def set_type(cfg: dict[str, Any], name: str) -> None:
    """Replace a config's ``type``, in the scope that it has."""
    kind = cfg.get('type', '')
    scope = kind.rpartition('.')[0] if isinstance(kind, str) else ''
    cfg['type'] = f'{scope}.{name}' if scope not in ('', 'mmengine') else name
