"""Small modules of classes of their own."""

from collections.abc import Callable
from typing import Any

from torch import nn


def make_block(
    name: str,
    run: Callable[..., Any],
    kind: type[nn.Module] = nn.Module,
    **layers: nn.Module,
) -> Any:
    """A module of a new class that runs what it holds."""
    made: Any = type(name, (kind,), dict(forward=run))()
    for key, layer in layers.items():
        made.add_module(key, layer)
    return made
