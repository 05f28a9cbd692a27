"""Sparse-IFT backbones on top of MMDetection's."""

from mmdet.models import ResNet
from mmdet.registry import MODELS

from sift_mm.backbones.any_backbone import register
from sift_mm.backbones.resnet import SparseIFTMixin


@MODELS.register_module()
class SparseIFTResNet(SparseIFTMixin, ResNet):
    """MMDetection's ResNet, see :class:`SparseIFTMixin`."""

    dense_stem_channels = None


register(MODELS)
