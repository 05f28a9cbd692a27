"""The ``type`` of a config's node."""

from collections.abc import Mapping
from typing import Any


def type_name(cfg: Mapping[str, Any]) -> str:
    """Name in a config's ``type``: without scope, of a class its name."""
    kind = cfg.get('type', '')
    name = kind if isinstance(kind, str) else kind.__name__
    return name.rpartition('.')[2]


def set_type(cfg: dict[str, Any], name: str) -> None:
    """Replace a config's ``type``, in the scope that it has."""
    kind = cfg.get('type', '')
    scope = kind.rpartition('.')[0] if isinstance(kind, str) else ''
    cfg['type'] = f'{scope}.{name}' if scope not in ('', 'mmengine') else name
