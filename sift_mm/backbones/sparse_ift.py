"""What Sparse-IFT adds to a library's ResNet."""

import copy
import inspect
import re
from typing import Any

import torch
from torch import nn

from ..isoflop import check_family, check_sparsity, wide_width

# Convolutions of the residual blocks and their shortcuts. The stem, norms
# and what plugins bring along stay dense.
_RESIDUAL = re.compile(r'layer\d+\.\d+\.(conv\d+|downsample\.\d+)')


class SparseIFTMixin(nn.Module):
    """Mixin for a ResNet of mmdet, mmseg or mmpretrain.

    The network keeps its own modules, parameter names and initialisation;
    Sparse Wide only builds it wider. Masks are not part of it: the training
    hook draws them over :meth:`sparse_parameter_names`.

    Args:
        depth (int): Depth of the ResNet: 18, 34, 50, 101 or 152.
        family (str, optional): Member of the Sparse-IFT family, 'wide'; None
            is the library's own network, weight for weight.
        sparsity (float, optional): Nominal share of zero weights, in [0, 1).
            It sets the width; ``base_channels`` and ``stem_channels`` are
            those of the dense network.
        flops (str): 'match': masks are drawn at the sparsity where the whole
            backbone, with its dense and wider stem, has the FLOPs of the
            dense backbone. 'nominal': masks are drawn at ``sparsity``.
        *args: Arguments of the library's ResNet after depth.
        **kwargs: Likewise.

    Raises:
        KeyError: If the library has no ResNet of this depth.
        ValueError: If family, sparsity or flops are not among the above, or
            a family is asked for along with deformable convolutions.
    """

    # The stem's width where the caller gives none; mmdet's follows
    # base_channels.
    dense_stem_channels: int | None = 64
    # Of the library's ResNet.
    arch_settings: dict[int, tuple]
    base_channels: int
    block: type[nn.Module]
    out_indices: tuple[int, ...]
    # Height and width at which FLOPs are matched. The ratio of two networks
    # of the same strides is the same at every multiple of 32.
    match_shape = (224, 224)

    def __init__(self,
                 depth: int,
                 *args: Any,
                 family: str | None = None,
                 sparsity: float | None = None,
                 flops: str = 'match',
                 **kwargs: Any) -> None:
        check_family(family)
        if sparsity is not None:
            check_sparsity(sparsity)
        if flops not in ('match', 'nominal'):
            raise ValueError("flops is 'match' or 'nominal'; got "
                             f'{flops!r}.')
        if family is None and sparsity:
            raise ValueError(
                f'sparsity={sparsity} without a family: the network would '
                "be the dense one. Set family='wide', or leave it out.")
        if family is not None and sparsity is None:
            raise ValueError(f'family={family!r} needs a sparsity, the one '
                             'number that width and masks follow from.')
        if family is not None and kwargs.get('dcn') is not None:
            raise ValueError('Deformable convolutions (dcn) cannot be masked '
                             'yet; leave dcn out or set family=None.')
        if depth not in self.arch_settings:
            raise KeyError(
                f'There is no ResNet-{depth} in this library; the depths are '
                f'{list(self.arch_settings)}.')
        parent: Any = next(c for c in type(self).__mro__
                           if not issubclass(c, SparseIFTMixin))
        # All by name, also what was given by position.
        kwargs = inspect.signature(parent).bind(
            depth, *args, **kwargs).arguments
        kwargs.update(kwargs.pop('kwargs', {}))
        dense_kwargs = copy.deepcopy(kwargs)
        if family == 'wide' and sparsity is not None:
            base = kwargs.get('base_channels', 64)
            stem = kwargs.get('stem_channels', self.dense_stem_channels)
            kwargs['base_channels'] = wide_width(base, sparsity)
            if stem is not None:
                kwargs['stem_channels'] = wide_width(stem, sparsity)
        super().__init__(**kwargs)
        self.family = family
        self.sparsity = sparsity or 0.0
        self.flops = flops
        self._parent = parent
        self._dense_kwargs = dense_kwargs

    @property
    def out_channels(self) -> list[int]:
        """Channels of each output, in the order of ``out_indices``."""
        # MMPretrain's blocks do not say; its network does.
        owner: Any = self if hasattr(self, 'expansion') else self.block
        return [self.base_channels * owner.expansion * 2**i
                for i in self.out_indices]

    def sparse_parameter_names(self) -> list[str]:
        """Names of the weights that masks go on; none at family=None."""
        if self.family is None:
            return []
        return [
            f'{name}.weight'
            for name, module in self.named_modules()
            if isinstance(module, nn.Conv2d) and _RESIDUAL.fullmatch(name)
        ]

    def dense_twin(self) -> nn.Module:
        """The dense network that this one is compared with.

        Returns:
            nn.Module: The library's own ResNet. Building it leaves the
            random state of the run alone.
        """
        with torch.random.fork_rng(devices=[]):
            return self._parent(**copy.deepcopy(self._dense_kwargs))

    def extra_repr(self) -> str:
        """Family, sparsity and FLOPs, for ``print``."""
        return (f'family={self.family!r}, sparsity={self.sparsity}, '
                f'flops={self.flops!r}')
