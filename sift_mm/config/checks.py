"""Checks of the arguments of modules that a config names."""

import inspect
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import HOOKS, MODELS, OPTIMIZERS, Registry
from torch import nn

from sift_mm.backbones.base import SparseIFTBackbone, make_member
from sift_mm.config.family_options import VARIANT
from sift_mm.config.libraries import import_library
from sift_mm.config.nodes import type_name, walk
from sift_mm.errors import located
from sift_mm.names import check_names
from sift_mm.validation import parameters, read_arguments


def arguments(cfg: Config, kind: Any) -> dict[str, Any]:
    """Return the arguments of a module's ``type``, with their defaults.

    An argument without a default has ``inspect.Parameter.empty``.
    """
    maker = _maker(cfg, MODELS, kind)
    known = parameters(maker) if callable(maker) else {}
    return {name: argument.default for name, argument in known.items()}


def _maker(cfg: Config, registry: Registry, kind: Any) -> Any:
    """Return the class or function of a ``type``; None if not registered."""
    if not isinstance(kind, str):
        return kind
    scope = cfg.get('default_scope', 'mmengine')
    with registry.switch_scope_and_registry(scope) as found:
        return found.get(kind)


def backbone_node(cfg: Config) -> ConfigDict:
    """Return the node that takes the arguments of a member of the family.

    It is ``model.backbone``, or ``model`` if that is a Sparse-IFT network
    itself, such as GPT; an empty node if there is none.
    """
    model = cfg.get('model') or ConfigDict()
    if model.get('backbone'):
        return model['backbone']
    maker = _maker(cfg, MODELS, model.get('type'))
    own = inspect.isclass(maker) and issubclass(maker, SparseIFTBackbone)
    return model if own else ConfigDict()


def backbone_key(cfg: Config) -> str:
    """Return the key of that node."""
    has_own = (cfg.get('model') or {}).get('backbone')
    return 'model.backbone' if has_own else 'model'


def check_config(cfg: Config) -> None:
    """Refuse invalid arguments of sparse training.

    The library is imported, and only the hooks, which are small, are built.

    Raises:
        UserError: For the first invalid argument of a Sparse-IFT backbone or
            SparseTrainingHook, and for an unknown optimizer.
    """
    import_library(cfg)
    _check_optimizer(cfg)
    hook_class = HOOKS.get('SparseTrainingHook')
    for i, hook in enumerate(cfg.get('custom_hooks') or ()):
        if not isinstance(hook, dict):
            continue  # The hook is already built.
        maker = _maker(cfg, HOOKS, hook.get('type'))
        if inspect.isclass(maker) and issubclass(maker, hook_class):
            with located(f'custom_hooks.{i}'):
                maker(**_without(hook, 'type', 'priority'))
    own = backbone_node(cfg)
    for key, node in walk(cfg.get('model'), 'model'):
        # Other nodes may be in no registry of models.
        if isinstance(node, dict) and (
            'SparseIFT' in str(node.get('type')) or node is own
        ):
            maker = _maker(cfg, MODELS, node['type'])
            if maker is not None:
                with located(key):
                    given = _without(node, 'type')
                    found = read_arguments(maker, given, type_name(node))
                    member: Any = {name: found.get(name) for name in VARIANT}
                    make_member(**member)


def _check_optimizer(cfg: Config) -> None:
    """Refuse an optimizer that cannot be built from its arguments.

    MMEngine would call None in place of one that is not registered.
    """
    node: Any = (cfg.get('optim_wrapper') or {}).get('optimizer')
    kind = node.get('type') if isinstance(node, dict) else None
    maker = _maker(cfg, OPTIMIZERS, kind)
    if maker is None and kind is not None:
        what = 'optim_wrapper.optimizer: there is no optimizer'
        check_names(what, [kind], OPTIMIZERS.module_dict)
    # Optimizers of other packages may need more than parameters.
    if getattr(maker, '__module__', '').startswith('torch.optim'):
        parameters = [nn.Parameter(torch.zeros(1, 1))]
        OPTIMIZERS.build(dict(node, type=maker, params=parameters))


def _without(node: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {k: v for k, v in node.items() if k not in (*keys, '_scope_')}
