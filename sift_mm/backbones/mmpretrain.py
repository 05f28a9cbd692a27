"""Sparse-IFT backbones on top of MMPretrain's."""

from mmpretrain.models import ResNet, ResNet_CIFAR
from mmpretrain.registry import MODELS

from sift_mm.backbones.any_backbone import register
from sift_mm.backbones.resnet import SparseIFTMixin


@MODELS.register_module()
class SparseIFTResNet(SparseIFTMixin, ResNet):
    """MMPretrain's ResNet, see :class:`SparseIFTMixin`."""


@MODELS.register_module()
class SparseIFTResNet_CIFAR(SparseIFTMixin, ResNet_CIFAR):
    """MMPretrain's ResNet with the 3x3 stem, see :class:`SparseIFTMixin`."""

    match_shape = (32, 32)
    parallel_inner = 'norm'


register(MODELS)
