"""The dense network that a Sparse-IFT config is compared with."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

from mmengine.config import Config
from torch import nn

from sift_mm.analysis.model_forward import count_model
from sift_mm.config.channels import (
    build,
    build_backbone,
    dense_arguments,
    follow,
)
from sift_mm.config.images import Shape, image_channels
from sift_mm.config.nodes import type_name
from sift_mm.flops import FlopCount


def dense_config(cfg: Config) -> Config:
    """The config of the dense network, in a copy.

    A backbone of Sparse-IFT becomes the library's own, and neck and heads
    read that.
    """
    cfg = copy.deepcopy(cfg)
    backbone = cfg.model.get('backbone') or {}
    kind = type_name(backbone)
    if not kind.startswith('SparseIFT'):
        return cfg
    wide = None if kind == 'SparseIFT' else build_backbone(cfg)
    cfg.model.backbone = dense_arguments(backbone)
    if wide is not None:
        follow(cfg.model, wide, dense=True)
    return cfg


def build_dense(cfg: Config) -> nn.Module:
    """Builds the dense network of :func:`dense_config`."""
    return build(dense_config(cfg))


@dataclass(frozen=True)
class WholeModel:
    """FLOPs of backbone, neck and heads together, in 2 x MACs of one image."""

    count: FlopCount  # With every weight dense.
    dense: int  # Of the whole dense model.
    assumed: tuple[str, ...]  # As :func:`count_model` says it.

    def ratio(self, densities: Mapping[str, float]) -> float:
        """FLOPs under masks, over those of the dense model."""
        return self.count.sparse(densities) / self.dense


def whole_model_flops(
    cfg: Config, model: nn.Module, shape: Shape
) -> WholeModel:
    """Counts the model of a config on an image, and its dense one.

    Raises:
        NotCountable: If the model cannot be run for counting.
    """
    channels = image_channels(cfg)
    count, assumed = count_model(model, shape, channels)
    dense, _ = count_model(build_dense(cfg), shape, channels)
    return WholeModel(count, dense.total, assumed)
