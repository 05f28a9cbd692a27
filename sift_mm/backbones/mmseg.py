"""Sparse-IFT backbones on top of MMSegmentation's."""

from mmseg.models import ResNet
from mmseg.registry import MODELS

from sift_mm.backbones.any_backbone import register
from sift_mm.backbones.resnet import SparseIFTMixin


@MODELS.register_module()
class SparseIFTResNet(SparseIFTMixin, ResNet):
    """MMSegmentation's ResNet, see :class:`SparseIFTMixin`."""


register(MODELS)
