"""Settings of a hand-written config that follow from the sparsity."""

from typing import Any

from sift_mm.flops.isoflop import wide_width
from sift_mm.layers.family import family_of


def _backbone(
    family: str,
    sparsity: float,
    base_channels: int,
    expansion: int,
    checkpoint: str | None = None,
) -> tuple[dict[str, Any], list[int]]:
    """Return settings of a ResNet, and channels of its four stages."""
    changes: dict[str, Any] = dict(family=family, sparsity=sparsity)
    if checkpoint is not None:
        changes['init_cfg'] = pretrained_backbone(checkpoint)
    if family_of(family).widens:
        base_channels = wide_width(base_channels, sparsity)
    return changes, [base_channels * expansion * 2**i for i in range(4)]


def pretrained_backbone(checkpoint: str) -> dict[str, str]:
    """Return the ``init_cfg`` of a backbone for a model's checkpoint."""
    return dict(type='Pretrained', checkpoint=checkpoint, prefix='backbone.')


def classifier(
    family: str,
    sparsity: float,
    base_channels: int = 64,
    expansion: int = 1,
    **backbone_options: Any,
) -> dict[str, dict]:
    """Return the changes to the config of MMPreTrain's ImageClassifier.

    Args:
        family (str): Member of the Sparse-IFT family.
        sparsity (float): Nominal share of zero weights.
        base_channels (int): Width of the dense network's first stage.
        expansion (int): Expansion of the ResNet's blocks: 1 up to depth 34,
            then 4.
        **backbone_options: Other options of the family: ``flops``, ``inner``,
            ``sparse_factors``.

    Returns:
        dict: Backbone and head.
    """
    backbone, out = _backbone(family, sparsity, base_channels, expansion)
    backbone |= backbone_options
    return dict(backbone=backbone, head=dict(in_channels=out[3]))


def detector(
    family: str,
    sparsity: float,
    checkpoint: str | None = None,
    base_channels: int = 64,
    expansion: int = 1,
) -> dict[str, dict]:
    """Return the changes to a config of MMDetection with an FPN.

    Arguments are those of :func:`classifier`. Backbone and masks start from
    the ``checkpoint`` of such a classifier.

    Returns:
        dict: Backbone and neck.
    """
    backbone, out = _backbone(
        family, sparsity, base_channels, expansion, checkpoint
    )
    return dict(backbone=backbone, neck=dict(in_channels=out))


def segmentor(
    family: str,
    sparsity: float,
    checkpoint: str | None = None,
    base_channels: int = 64,
    expansion: int = 1,
) -> dict[str, dict]:
    """Return the changes to a config of MMSegmentation's DeepLabV3+.

    Arguments are those of :func:`detector`.

    Returns:
        dict: Backbone, decode head and the auxiliary head on stage 3.
    """
    backbone, out = _backbone(
        family, sparsity, base_channels, expansion, checkpoint
    )
    return dict(
        backbone=backbone,
        decode_head=dict(in_channels=out[3], c1_in_channels=out[0]),
        auxiliary_head=dict(in_channels=out[2]),
    )
