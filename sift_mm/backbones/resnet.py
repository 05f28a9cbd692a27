"""Sparse-IFT for the ResNets of the libraries."""

import bisect
import copy
import inspect
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sift_mm.backbones.base import (
    FamilyName,
    Flops,
    Inner,
    SparseFactors,
    SparseIFTBackbone,
    make_member,
)
from sift_mm.backbones.ranks import ranks_for
from sift_mm.errors import UserError, UserKeyError
from sift_mm.flops import FlopCount, count_flops
from sift_mm.flops.isoflop import wide_width
from sift_mm.layers import Composite, Member, Parallel
from sift_mm.layers.plain import kaiming_scale, plain_type, replace
from sift_mm.validation import Size, Sparsity, checked

# Convolutions of the residual blocks and their shortcuts. The stem, norms and
# plugins stay dense.
_BRANCH = re.compile(r'layer\d+\.\d+\.conv(\d+)')
_SHORTCUT = re.compile(r'layer\d+\.\d+\.downsample\.\d+')
# Keys of every ResNet; a valid checkpoint may lack plugins and offsets of
# deformable convolutions.
_CORE = re.compile(
    r'(conv1|(?!layer)[a-z]+1|stem\.\d+|'
    r'layer\d+\.\d+\.([a-z]+\d|downsample\.\d+))\.'
)


class SparseIFTMixin(SparseIFTBackbone):
    """Mixin for a ResNet of mmdet, mmseg or mmpretrain.

    Sparse Wide builds a wider network of the same modules, parameter names
    and initialization. The other members replace the convolutions of residual
    branches by :class:`Parallel`, :class:`Factorized` and :class:`Doped`
    layers. Shortcuts stay single layers, except with 'wide_factorized': dense
    wide shortcuts would cost more than the whole dense network. The network
    holds no masks: the training hook draws them over
    :meth:`sparse_parameter_names`.

    Args:
        depth (int): Depth of the ResNet: 18, 34, 50, 101 or 152.
        family (str, optional): Member of the Sparse-IFT family, 'wide',
            'parallel', 'factorized', 'doped' or 'wide_factorized'; None is
            the library's own network, weight for weight.
        sparsity (float, optional): Nominal share of zero weights, in [0, 1).
            It sets width, branches and ranks. ``base_channels`` and
            ``stem_channels`` are the dense network's.
        flops (str): 'match': the sparsity of the masks is solved so that the
            backbone, with the linear head of a classifier, has the dense
            FLOPs. Without masks, ranks are solved, at the strides of a
            classifier, so that its checkpoint loads into a dilated network.
            'match_model': backbone, neck and heads together have the dense
            model's FLOPs, at the size of the test images.
            'nominal': masks have ``sparsity``, and ranks match single layers.
        inner (str, optional): Modules behind an inner layer: 'none', 'norm'
            or 'norm_act'. None is the authors' choice: 'none', for 'parallel'
            'norm_act' with the ImageNet and 'norm' with the CIFAR stem. The
            block's norm behind a Parallel layer with inner norms is left out.
        sparse_factors (str, optional): As for :class:`Member`.
        match_shape (tuple[int, int], optional): Height and width, in pixels,
            at which FLOPs are matched. None is 224 x 224, or 32 x 32 with
            the CIFAR stem; the ratio of two networks of the same strides is
            the same at every multiple of 32.
        unmasked (bool): Whether a run may train all weights, without a hook.
        *args: Arguments of the library's ResNet after depth.
        **kwargs: The same by name.

    Raises:
        KeyError: If the library has no ResNet of this depth.
        ValueError: If an argument is invalid, a layer is too small for the
            sparsity, or a family is combined with deformable convolutions.
    """

    # Default width of the stem; mmdet's follows base_channels.
    dense_stem_channels: int | None = 64
    # Attributes of the library's ResNet.
    arch_settings: dict[int, tuple]
    base_channels: int
    block: type[nn.Module]
    out_indices: tuple[int, ...]
    norm_cfg: dict[str, Any]
    zero_init_residual: bool
    init_cfg: Any
    # Behind each branch of a Parallel layer.
    parallel_inner = 'norm_act'
    core_keys = _CORE
    match_shape: tuple[int, ...] = (224, 224)

    @checked
    def __init__(
        self,
        depth: int,
        *args: Any,
        family: FamilyName | None = None,
        sparsity: Sparsity | None = None,
        flops: Flops = 'match',
        inner: Inner | None = None,
        sparse_factors: SparseFactors | None = None,
        match_shape: Size | None = None,
        unmasked: bool = False,
        **kwargs: Any,
    ) -> None:
        member = make_member(
            family, sparsity, inner, sparse_factors, self.parallel_inner
        )
        if member is not None and kwargs.get('dcn') is not None:
            raise UserError(
                'Deformable convolutions (dcn) cannot be masked '
                'yet; leave dcn out or set family=None.'
            )
        if depth not in self.arch_settings:
            raise UserKeyError(
                f'There is no ResNet-{depth} in this library; the depths are '
                f'{list(self.arch_settings)}.'
            )
        mro = type(self).__mro__
        parent: Any = next(
            c for c in mro if not issubclass(c, SparseIFTBackbone)
        )
        # Positional arguments by name, too.
        bound = inspect.signature(parent).bind(depth, *args, **kwargs)
        kwargs = bound.arguments
        kwargs.update(kwargs.pop('kwargs', {}))
        dense_kwargs = copy.deepcopy(kwargs)
        if member is not None and member.kind.widens:
            kwargs = self._widened(kwargs, member.sparsity)
            _check_groups(kwargs.get('norm_cfg'), kwargs['base_channels'])
        if member is not None and member.kind.composite:
            # The authors start the last norm at zero in plain blocks alone.
            kwargs.setdefault('zero_init_residual', False)
        super().__init__(**kwargs)
        self._become(member, flops, match_shape, unmasked)
        self._parent = parent
        self._dense_kwargs = dense_kwargs
        self.image_channels = kwargs.get('in_channels', 3)
        if member is not None:
            self._put_layers(member, kwargs)

    def _put_layers(self, member: Member, kwargs: Mapping[str, Any]) -> None:
        """Put in the member's layers; raise a ValueError for small ones."""
        layers = {
            name: module
            for name, module in self.named_modules()
            if _BRANCH.fullmatch(name)
            or (
                member.kind.widens
                and isinstance(module, nn.Conv2d)
                and _SHORTCUT.fullmatch(name)
            )
        }
        for name, layer in layers.items():
            if plain_type(layer) is None:
                raise UserError(
                    f'{name} is a {type(layer).__name__}, which masks do not '
                    'support; set conv_cfg=None.'
                )
        if not member.kind.composite:
            return  # The network was built wider.
        ranks = self._ranks(member, layers, kwargs)
        groups = self.norm_cfg.get('num_groups', 1)
        for name, layer in layers.items():
            try:
                new = member.build(
                    layer,
                    self._inner_norm,
                    groups,
                    kaiming_scale(layer),
                    rank=ranks.get(name),
                )
            except ValueError as error:
                raise UserError(f'{name}: {error}') from None
            replace(self, name, new)
            if isinstance(new, Parallel) and new.norms:
                # No norm behind the sum of normed branches.
                block = self.get_submodule(name.rpartition('.')[0])
                replace(
                    block,
                    getattr(block, f'norm{name[-1]}_name'),
                    nn.Identity(),
                )

    def _inner_norm(self, channels: int) -> nn.Module:
        from mmcv.cnn import build_norm_layer

        return build_norm_layer(self.norm_cfg, channels)[1]

    def _ranks(
        self,
        member: Member,
        layers: Mapping[str, nn.Module],
        kwargs: Mapping[str, Any],
    ) -> dict[str, int]:
        """Return the ranks that follow from the whole network.

        A dilated network takes the ranks of a classifier, with its strides: a
        pretrained network has to load into a segmentor.
        """
        if not (member.kind.widens and member.kind.composite):
            return {}
        stages = kwargs.get('num_stages', 4)
        usual: dict[str, Any] = {}
        if any(d != 1 for d in kwargs.get('dilations', ())):
            usual = dict(
                strides=(1, 2, 2, 2)[:stages], dilations=(1,) * stages
            )
        groups = self.norm_cfg.get('num_groups', 1)
        wide, dense = (
            self._count(dict(k, **usual)) for k in (kwargs, self._dense_kwargs)
        )
        multiple = groups if member.inner != 'none' else 1
        match = self.flops == 'match'
        try:
            return ranks_for(layers, member, wide, dense, match, multiple)
        except ValueError as error:
            raise UserError(f'{error} {self.advice(**usual)}') from None

    def _build(self, kwargs: Mapping[str, Any]) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            return self._parent(**copy.deepcopy(dict(kwargs)))

    def _count(self, kwargs: Mapping[str, Any]) -> FlopCount:
        model = self._build(kwargs)
        return count_flops(model, self.match_shape, self.image_channels)

    def advice(self, classifier: float = 0, **kwargs: Any) -> str:
        """Return a sentence with the nearest sparsity that meets the budget.

        Dense wider parts may cost the whole budget. ``kwargs`` replace
        arguments of the library's ResNet.
        """
        dense_kwargs = dict(self._dense_kwargs, **kwargs)
        budget = self._count(dense_kwargs).total + classifier

        def misses(hundredths: int) -> bool:
            wide_kwargs = self._widened(dense_kwargs, hundredths / 100)
            wide = self._count(wide_kwargs)
            growth = wide_kwargs['base_channels'] / self.dense_base_channels
            masked = sum(
                flops
                for name, flops in wide.by_module.items()
                if _BRANCH.fullmatch(name) or _SHORTCUT.fullmatch(name)
            )
            return wide.total + growth * classifier - masked >= budget

        lower = range(1, math.ceil(100 * self.sparsity))
        most = bisect.bisect_left(lower, True, key=misses)
        if not most:
            return "No sparsity can meet it; set flops='nominal'."
        return (
            f'The nearest sparsity that can meet it is {most / 100}; set '
            "it, or flops='nominal'."
        )

    def _widened(
        self, kwargs: Mapping[str, Any], sparsity: float
    ) -> dict[str, Any]:
        """Return the arguments of the wider network."""
        base = kwargs.get('base_channels', 64)
        stem = kwargs.get('stem_channels', self.dense_stem_channels)
        wide = dict(kwargs, base_channels=wide_width(base, sparsity))
        if stem is not None:
            wide['stem_channels'] = wide_width(stem, sparsity)
        return wide

    def init_weights(self) -> None:
        """Initialize by the library's rule, inner layers by their own.

        The library's rule would draw each inner layer like a single layer.
        """
        if self._has_weights():
            return
        super().init_weights()  # type: ignore[misc]
        last = {}
        for name, layer in self.named_modules():
            if isinstance(layer, Composite):
                layer.init_weights()
                last[name.rpartition('.')[0]] = layer
        for layer in last.values():
            if self.zero_init_residual and isinstance(layer, Parallel):
                layer.zero_norms()

    @property
    def out_channels(self) -> list[int]:
        """Channels of each output, in the order of ``out_indices``."""
        # In MMPretrain the network has the expansion, not the block.
        owner: Any = self if hasattr(self, 'expansion') else self.block
        return [
            self.base_channels * owner.expansion * 2**i
            for i in self.out_indices
        ]

    @property
    def growth(self) -> float:
        """Width of stem and features, divided by the dense twin's."""
        return self.base_channels / self.dense_base_channels

    @property
    def dense_base_channels(self) -> int:
        """Width of the dense twin's first stage."""
        return self._dense_kwargs.get('base_channels', 64)

    def sparse_parameter_names(self) -> list[str]:
        """Return the names of masked weights; none with family=None."""
        if self.member is None:
            return []
        kinds = [_SHORTCUT]
        # With other members, a branch of a single layer was folded, and is
        # dense.
        if not self.member.kind.composite:
            kinds.append(_BRANCH)
        return super().sparse_parameter_names() + [
            f'{name}.weight'
            for name, module in self.named_modules()
            if isinstance(module, nn.Conv2d)
            and any(kind.fullmatch(name) for kind in kinds)
        ]

    def dense_twin(self) -> nn.Module:
        """Build the library's own ResNet, see the base."""
        return self._build(self._dense_kwargs)


def _check_groups(norm_cfg: Mapping[str, Any] | None, width: int) -> None:
    """Refuse a group norm that does not divide a width, with a ValueError."""
    groups = (norm_cfg or {}).get('num_groups', 1)
    if width % groups:
        raise UserError(
            f"norm_cfg's {groups} groups do not divide the width of {width} "
            'channels that follows from the sparsity; choose num_groups that '
            'divides it, or another sparsity.'
        )
