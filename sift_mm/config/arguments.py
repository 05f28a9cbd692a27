"""Arguments of the modules that a config names."""

import inspect
import re
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS

from sift_mm.config.member import check_names


def arguments(cfg: Config, kind: Any) -> dict[str, Any]:
    """What a module of a config takes, those of its base classes included.

    Args:
        cfg (Config): Config of a run; its library is imported.
        kind (str | Callable): ``type`` of the module.

    Returns:
        dict[str, Any]: Defaults by name, ``inspect.Parameter.empty`` without.
    """
    if isinstance(kind, str):
        scope = cfg.get('default_scope', 'mmengine')
        with MODELS.switch_scope_and_registry(scope) as registry:
            kind = registry.get(kind)
    makers = [kind] if callable(kind) else []
    if inspect.isclass(kind):
        makers = [
            vars(one)['__init__']
            for one in reversed(inspect.getmro(kind))
            if '__init__' in vars(one) and one is not object
        ]
    return {
        name: argument.default
        for maker in makers
        for name, argument in inspect.signature(maker).parameters.items()
    }


def refuse_unknown(cfg: Config, error: Exception) -> None:
    """Says which argument was misspelt, if that is why a model is not built.

    Args:
        cfg (Config): Config of the model.
        error (Exception): Of building it.

    Raises:
        ValueError: One sentence, with the nearest name.
    """
    found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    for key, node in _nodes(cfg.model, 'model') if found else ():
        if found and found[1] in node and 'type' in node:
            kind = node['type']
            check_names(
                f'{key} has no argument', [found[1]], arguments(cfg, kind)
            )


def _nodes(node: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """All dicts of a config, by their dotted keys."""
    items: Any = enumerate(node) if isinstance(node, (list, tuple)) else ()
    if isinstance(node, dict):
        yield key, node
        items = node.items()
    for name, value in items:
        yield from _nodes(value, f'{key}.{name}')
