"""FLOP budgets of a network and of its dense twin."""

from collections.abc import Mapping
from dataclasses import dataclass

from mmengine.config import Config
from torch import nn

from sift_mm.backbones import SparseIFTBackbone
from sift_mm.backbones.base import sparse_backbone
from sift_mm.errors import UserError
from sift_mm.flops import FlopCount, count_flops, describe_shape


@dataclass(frozen=True)
class FlopBudget:
    """FLOPs of a network and of its dense twin, in 2 x MACs.

    Args:
        own (FlopCount): FLOPs of the network with dense weights.
        dense (float): FLOPs of the dense twin.
        prefix (str): Prefix of the names of ``own`` in the model.
        classifier (float): FLOPs of a linear head that is not in ``own``.
    """

    own: FlopCount
    dense: float
    prefix: str = ''
    classifier: float = 0

    def cost(self, densities: Mapping[str, float]) -> float:
        """Return the FLOPs under masks of given densities, by full name."""
        return self.classifier + self.own.sparse(
            {
                name.removeprefix(self.prefix): density
                for name, density in densities.items()
                if name.startswith(self.prefix)
            }
        )

    def ratio(self, densities: Mapping[str, float]) -> float:
        """Return :meth:`cost` divided by the FLOPs of the dense twin."""
        return self.cost(densities) / self.dense


def backbone_flops(backbone: SparseIFTBackbone) -> tuple[FlopCount, float]:
    """Count the FLOPs of a backbone with dense weights, and of its dense twin.

    Counts are 2 x MACs at the backbone's ``match_shape``.

    Raises:
        ValueError: If the backbone does not run on an input of that shape.
    """
    shape, channels = backbone.match_shape, backbone.image_channels
    try:
        return (
            count_flops(backbone, shape, channels),
            count_flops(backbone.dense_twin(), shape, channels).total,
        )
    except Exception as error:  # Layers raise errors of any type.
        kind = getattr(backbone, 'kind', type(backbone))
        raise UserError(
            f'The FLOPs of {kind.__name__} cannot be matched: it '
            f'does not run on an input of {describe_shape(shape)} '
            f'alone ({type(error).__name__}: '
            f'{str(error).partition(chr(10))[0]}); set match_shape of the '
            "backbone, or flops='nominal'."
        ) from error


def whole_model_budget(cfg: Config, model: nn.Module) -> FlopBudget:
    """Count the FLOPs of a model and of its dense twin for a test image.

    Raises:
        ValueError: If the config has no image size, or the FLOPs cannot be
            counted.
    """
    from sift_mm.config.dense import make_dense
    from sift_mm.config.images import channels_of, find_sizes
    from sift_mm.flops.model_forward import count_model

    (shape, _), _ = find_sizes(cfg, None)
    channels = channels_of(cfg, model)
    own, _ = count_model(model, shape, channels)
    found = sparse_backbone(model)
    if found is None:
        return FlopBudget(own, own.total)
    wide = found[1] if found[0] == 'backbone.' else None
    dense, _ = count_model(make_dense(cfg, wide)[1], shape, channels)
    return FlopBudget(own, dense.total)
