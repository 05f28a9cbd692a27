"""Dense network for comparison with a sparse one."""

import copy
import inspect
from typing import Any

from mmengine.config import Config
from torch import nn

from sift_mm.backbones import SparseIFTMixin
from sift_mm.backbones.base import sparse_backbone
from sift_mm.config.building import build
from sift_mm.config.channels import fit
from sift_mm.config.checks import backbone_node
from sift_mm.config.family_options import MEMBER_ARGUMENTS
from sift_mm.config.nodes import type_name
from sift_mm.errors import UserError


def make_dense(cfg: Config, wide: Any = None) -> tuple[Config, nn.Module]:
    """Return the config of the dense network, a copy, with its model.

    A backbone of Sparse-IFT becomes the library's, and neck and heads follow.

    Args:
        cfg (Config): Config of the sparse network.
        wide (nn.Module, optional): Its backbone, if it is already built.
    """
    cfg = copy.deepcopy(cfg)
    backbone = backbone_node(cfg)
    kind = type_name(backbone)
    if backbone is cfg.model:
        for name in MEMBER_ARGUMENTS:
            backbone.pop(name, None)
    elif kind == 'SparseIFT':
        cfg.model.backbone = backbone['backbone']
    elif kind.startswith('SparseIFT'):
        wide = build(cfg, 'backbone') if wide is None else wide
        own = inspect.signature(SparseIFTMixin).parameters.items()
        for name, argument in own:
            if argument.kind is argument.KEYWORD_ONLY:
                backbone.pop(name, None)
        return cfg, fit(cfg, wide, dense=True)[0]
    return cfg, build(cfg)


def dense_network(cfg: Config, model: nn.Module) -> nn.Module:
    """Return the dense network of a config, for comparison with its model.

    It is the model itself if no backbone has a family.

    Raises:
        UserError: If the Sparse-IFT backbone is neither ``model.backbone``
            nor the model.
    """
    found = sparse_backbone(model)
    if found is None:
        return model
    if found[0] not in ('', 'backbone.'):
        raise UserError(f'the Sparse-IFT backbone is model.{found[0][:-1]}')
    return make_dense(cfg, found[1])[1]
