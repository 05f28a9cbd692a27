"""Nodes of a config, by their keys and by their ``type``."""

from collections.abc import Iterator, Mapping
from typing import Any


def walk(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield a node and all nodes below it, by dotted keys."""
    yield key, node
    items: Any = enumerate(node) if isinstance(node, (list, tuple)) else ()
    for name, value in node.items() if isinstance(node, dict) else items:
        yield from walk(value, f'{key}.{name}')


def set_at(node: Any, key: str, value: Any) -> Any:
    """Set the value at a dotted key below a node, and return the node.

    A tuple on the way becomes a new tuple: some modules require one.
    """
    name, _, rest = key.partition('.')
    place: Any = name if isinstance(node, dict) else int(name)
    value = set_at(node[place], rest, value) if rest else value
    if isinstance(node, tuple):
        return (*node[:place], value, *node[place + 1 :])
    node[place] = value
    return node


def type_name(cfg: Mapping[str, Any]) -> str:
    """Return the class name in a config's ``type``, without scope."""
    kind = cfg.get('type', '')
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
    return name.rpartition('.')[2]


def hook_place(cfg: Mapping[str, Any]) -> int | None:
    """Return the index of SparseTrainingHook in ``custom_hooks``, or None."""
    for i, hook in enumerate(cfg.get('custom_hooks') or []):
        if isinstance(hook, Mapping):  # Else it is already built.
            if type_name(hook) == 'SparseTrainingHook':
                return i
    return None


def set_type(cfg: dict[str, Any], name: str) -> None:
    """Replace a config's ``type`` and keep its scope."""
    kind = cfg.get('type', '')
    scope = kind.rpartition('.')[0] if isinstance(kind, str) else ''
    cfg['type'] = f'{scope}.{name}' if scope not in ('', 'mmengine') else name
