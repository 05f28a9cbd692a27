"""Models built from a config, outside a run."""

import copy
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sift_mm.checkpoint.reading import load
from sift_mm.checkpoint.state import check_keys
from sift_mm.config.explain import describe
from sift_mm.config.nodes import walk
from sift_mm.errors import UserError

DRAWS = (
    *(nn.init.kaiming_uniform_, nn.init.uniform_, nn.init.normal_),
    *(Tensor.uniform_, Tensor.normal_),
)
SYNC_NORMS = ('SyncBN', 'MMSyncBN', 'NaiveSyncBN', 'SyncBatchNorm')


class _NoDraws(TorchFunctionMode):
    """Mode without random initialization, which takes most of the time."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in DRAWS:
            return args[0] if args else kwargs['tensor']
        return func(*args, **kwargs)


def build(cfg: Config, part: str | None = None) -> nn.Module:
    """Build the model of a config, or one module of it.

    Weights are neither initialized nor loaded, and the random state of the run
    does not change.

    Args:
        cfg (Config): Config with a ``model``.
        part (str, optional): Key of the module in the model.

    Raises:
        UserError: If the module cannot be built, with its key and the reason.
    """
    cfg = copy.deepcopy(cfg)
    replace_sync_norms(cfg.model)  # Some need a process group.
    scope = cfg.get('default_scope', 'mmengine')
    with (
        DefaultScope.overwrite_default_scope(scope),
        torch.random.fork_rng(devices=[]),
        _NoDraws(),
    ):
        try:
            return MODELS.build(cfg.model[part] if part else cfg.model)
        except UserError:
            raise
        except Exception as error:
            raise UserError(describe(error, cfg)) from error


def build_trained(cfg: Config, path: str) -> tuple[nn.Module, dict[str, Any]]:
    """Build the model of a config with the weights of a checkpoint.

    Returns:
        tuple: The model in evaluation mode, and the checkpoint.

    Raises:
        UserError: If the file cannot be read, or is of another network.
    """
    model, checkpoint = build(cfg), load(path)
    state = checkpoint.get('state_dict', checkpoint)
    check_keys(model, state, path, None)
    model.load_state_dict(state, strict=False)
    return model.eval(), checkpoint


def replace_sync_norms(node: Any) -> bool:
    """Replace synchronized norms of a model config by BN, in place."""
    norms = [
        found
        for _, found in walk(node, 'model')
        if isinstance(found, dict) and found.get('type') in SYNC_NORMS
    ]
    for norm in norms:
        norm['type'] = 'BN'
    return bool(norms)
