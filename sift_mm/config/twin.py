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
from sift_mm.config.nodes import type_name
from sift_mm.flops import FlopCount


def dense_config(cfg: Config) -> Config:
    """The config of the dense network.

    Args:
        cfg (Config): Config of a run; it is left as it is.

    Returns:
        Config: The same, if its backbone is none of Sparse-IFT. Else with
        the library's own backbone, and neck and heads that read it.
    """
    cfg = copy.deepcopy(cfg)
    backbone = cfg.model.get('backbone') or {}
    kind = type_name(backbone)
    if not kind.startswith('SparseIFT'):
        return cfg
    dense = dense_arguments(backbone)
    if kind == 'SparseIFT':
        cfg.model.backbone = dense
        return cfg
    wide = build_backbone(cfg)
    cfg.model.backbone = dense
    base, dense_base = wide.base_channels, wide.dense_base_channels
    widths = [width // base * dense_base for width in wide.out_channels]
    follow(cfg.model, widths, dense_base, base)
    return cfg


def build_dense(cfg: Config) -> nn.Module:
    """Builds the dense network of :func:`dense_config`."""
    return build(dense_config(cfg))


@dataclass(frozen=True)
class WholeModel:
    """FLOPs of backbone, neck and heads together, in 2 x MACs of one image.

    Args:
        count (FlopCount): Of the model, with every weight dense.
        dense (int): Of the whole dense model.
        assumed (tuple[str, ...]): What was taken from the config where it
            depends on the image, such as the number of proposals.
    """

    count: FlopCount
    dense: int
    assumed: tuple[str, ...]

    def ratio(self, densities: Mapping[str, float]) -> float:
        """FLOPs under masks, over those of the dense model."""
        return self.count.sparse(densities) / self.dense


def whole_model_flops(
    cfg: Config, model: nn.Module, shape: tuple[int, int]
) -> WholeModel:
    """Counts a whole model, and the dense one that it is compared with.

    Args:
        cfg (Config): Config of the model.
        model (nn.Module): The model; it is left as it is.
        shape (tuple[int, int]): Height and width of the image, in pixels.

    Returns:
        WholeModel: The counts.

    Raises:
        ValueError: If the model cannot be run for counting.
    """
    channels = (cfg.model.get('backbone') or {}).get('in_channels', 3)
    count, assumed = count_model(model, shape, channels)
    dense, _ = count_model(build_dense(cfg), shape, channels)
    return WholeModel(count, dense.total, assumed)
