"""Sparse-IFT ResNets on top of MMSegmentation's."""

from mmseg.models.backbones import ResNet
from mmseg.registry import MODELS

from .sparse_ift import SparseIFTMixin


@MODELS.register_module()
class SparseIFTResNet(SparseIFTMixin, ResNet):
    """MMSegmentation's ResNet, see :class:`SparseIFTMixin`."""
