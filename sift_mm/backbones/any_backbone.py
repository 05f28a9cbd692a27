"""Sparse-IFT around any backbone of the libraries."""

import copy
from collections import Counter
from dataclasses import asdict
from functools import cache, partial, wraps
from typing import Any

import torch
from mmengine.registry import Registry
from torch import Tensor, nn

from sift_mm.backbones.base import (
    FamilyName,
    Flops,
    Inner,
    SparseFactors,
    SparseIFTBackbone,
    make_member,
)
from sift_mm.checkpoint.state import pretrained_cfg
from sift_mm.errors import UserError
from sift_mm.flops import count_flops, image_channels, meta_image
from sift_mm.layers import (
    Composite,
    Member,
    NothingReplaced,
    Wide,
    transform,
)
from sift_mm.layers.candidates import choose_layers
from sift_mm.layers.replacement import output_shapes
from sift_mm.validation import (
    AnyGlobs,
    Globs,
    Node,
    Size,
    Sparsity,
    parameters,
    read_arguments,
)

# Registries that build dense twins, by scope.
LIBRARIES: dict[str, Registry] = {}
# Largest relative rounding error of FLOPs without masks.
TOLERANCE = 1e-3
# Usual image sizes of networks, in pixels, the most common first.
SIDES = (224, 256, 32)


class TransformedBackbone(SparseIFTBackbone):
    """Mixin for a library's backbone whose layers were replaced.

    The network keeps the library's class, attributes and parameter names for
    necks, heads and hooks. The mixin adds the interface to the engine.
    """

    # Attributes of the class that :func:`_mixed` makes.
    library: Registry
    kind: Any

    def dense_twin(self) -> nn.Module:
        """Build the network of the inner config, without weights."""
        with torch.random.fork_rng(devices=[]):
            return self.library.build(copy.deepcopy(self._dense_cfg))

    def init_weights(self) -> None:
        """Initialize by the library's rule, replaced layers by their own.

        The library's rule would draw them like dense layers.
        """
        if self._has_weights():
            return
        super().init_weights()  # type: ignore[misc]
        for layer in self.modules():
            if isinstance(layer, (Composite, Wide)):
                layer.init_weights()

    def __reduce__(self) -> Any:
        # The class is made at run time, so that pickle cannot find its name.
        return _empty, (self.kind, self.library.scope), self.__dict__


def sparse_ift(
    library: Registry,
    backbone: Node,
    family: FamilyName | None = None,
    sparsity: Sparsity | None = None,
    flops: Flops = 'match',
    inner: Inner | None = None,
    sparse_factors: SparseFactors | None = None,
    include: Globs | None = None,
    exclude: AnyGlobs = (),
    match_shape: Size | None = None,
    unmasked: bool = False,
    init_cfg: Any = None,
    pretrained: str | None = None,
) -> nn.Module:
    """Build a library's backbone and make it a member of the family.

    Inputs and outputs keep their shapes: 'wide' widens the inside of blocks.
    It is registered as ``SparseIFT`` in the registries of the three libraries.

    Args:
        library (Registry): Registry that builds the inner config.
        backbone (Mapping): Config of the library's own backbone.
        family (str, optional): As for :func:`sift_mm.transform`; None builds
            the library's network.
        sparsity (float, optional): Nominal share of zero weights, in [0, 1).
        flops (str): As for :class:`SparseIFTMixin`, by the inner config.
        inner (str, optional): Modules behind an inner layer; None is 'none'.
        sparse_factors (str, optional): As for :class:`Member`.
        include (Sequence[str], optional): As for :func:`sift_mm.transform`.
        exclude (Sequence[str]): As for :func:`sift_mm.transform`.
        match_shape (tuple[int, int], optional): Height and width, in pixels,
            at which FLOPs are matched. None is the ``img_size`` of the
            config or class, else the first of 224, 256 and 32 that the
            network runs on.
        unmasked (bool): As for :class:`SparseIFTMixin`.
        init_cfg (dict, optional): Config of type 'Pretrained', for a
            checkpoint of this network.
        pretrained (str, optional): The checkpoint, as MMSegmentation's models
            pass it to their backbone.

    Raises:
        ValueError: If an argument is invalid, nothing can be replaced, or a
            network without masks misses the dense FLOPs.
    """
    member = make_member(family, sparsity, inner, sparse_factors)
    if pretrained_cfg(backbone.get('init_cfg')) or backbone.get('pretrained'):
        raise UserError(
            'The inner backbone of SparseIFT loads the weights of a dense '
            'network, which do not fit: take them out, and give a checkpoint '
            'of the sparse network by init_cfg of SparseIFT.'
        )
    if pretrained is not None:
        if init_cfg is not None:
            raise UserError(
                f'SparseIFT has init_cfg={init_cfg} and pretrained='
                f'{pretrained!r}; leave one out.'
            )
        init_cfg = dict(type='Pretrained', checkpoint=pretrained)
    network: Any = library.build(copy.deepcopy(dict(backbone)))
    if member is None:
        if init_cfg is not None:
            network.init_cfg = init_cfg
        return network
    # Else each weight is logged here, and again when a run starts.
    network._dump_init_info = lambda: None
    channels = backbone.get('in_channels') or image_channels(network)
    shape = match_shape or _image(network, backbone, channels)
    # Networks that read more than an image have no example.
    example = _trial(network, channels, shape)
    replaced = apply_member(network, member, include, exclude, example)
    del network._dump_init_info
    dense_kind: Any = type(network)
    network.__class__ = _mixed(dense_kind, library.scope)
    network._dense_cfg = copy.deepcopy(dict(backbone))
    network.image_channels = channels
    # Let a rule of the whole model initialize everything again.
    for module in network.modules():
        if hasattr(module, '_is_init'):
            module._is_init = False
    if init_cfg is not None:
        network.init_cfg = init_cfg
    network._become(member, flops, shape, unmasked)
    if not replaced and flops != 'nominal':
        check_unmasked_flops(network)
    return network


def register(library: Registry) -> None:
    """Register ``SparseIFT`` in a library's registry of models."""
    LIBRARIES[library.scope] = library
    make = partial(sparse_ift, library)

    @library.register_module(name='SparseIFT')
    @wraps(make)
    def build(**kwargs: Any) -> nn.Module:
        return make(**read_arguments(make, kwargs, 'SparseIFT'))


def apply_member(
    network: Any, member: Member, include: Any, exclude: Any, example: Any
) -> list[str]:
    """Replace layers and return the names of masked weights.

    Without a layer to replace, the error names the commonest reasons.
    """
    options = asdict(member)
    options.update(include=include, exclude=exclude, example=example)
    try:
        return transform(network, **options).sparse_parameters
    except NothingReplaced as error:
        # The text in brackets is for callers of `transform`.
        words = (
            why.partition(' (')[0] for why in error.report.skipped.values()
        )
        reasons = Counter(words).most_common(3)
        plain, _ = choose_layers(network, 'parallel', include, exclude)
        others = ' Take another family (docs/backbones.md).' if plain else ''
        raise UserError(
            f'family={member.family!r} finds nothing to replace in '
            f'{type(network).__name__}: '
            + '; '.join(f'{n} layers: {why}' for why, n in reasons)
            + f'.{others}'
        ) from None


def _trial(
    network: Any, channels: int, shape: tuple[int, int]
) -> Tensor | None:
    """Return an image without numbers, None if the network fails on it."""
    image = meta_image(shape, channels)
    runs = isinstance(output_shapes(network, image), list)
    return image if runs else None


def _image(network: Any, config: Any, channels: int) -> tuple[int, int]:
    """Return the image size of a network or config, else a usual one."""
    default = getattr(parameters(type(network)).get('img_size'), 'default', 0)
    size = getattr(network, 'img_size', config.get('img_size') or default)
    if isinstance(size, int) and size:
        return size, size
    if isinstance(size, (tuple, list)):
        return size[0], size[-1]
    for side in SIDES:
        if _trial(network, channels, (side, side)) is not None:
            return side, side
    return SIDES[0], SIDES[0]


def check_unmasked_flops(network: SparseIFTBackbone) -> None:
    """Refuse a network without masks whose FLOPs are not the dense ones."""
    kind = getattr(network, 'kind', type(network))
    own, dense = (
        count_flops(model, network.match_shape, network.image_channels).total
        for model in (network, network.dense_twin())
    )
    if abs(own / dense - 1) > TOLERANCE:
        raise UserError(
            f'family={network.family!r} gives {kind.__name__} '
            f'{own / dense:.4f} of the dense FLOPs, and without masks nothing '
            "makes up for it: set sparse_factors='both', or flops='nominal'."
        )


@cache
def _mixed(kind: Any, library: str) -> type[nn.Module]:
    """Return the library's class with the mixin in front."""
    return type(
        f'SparseIFT{kind.__name__}',
        (TransformedBackbone, kind),
        dict(kind=kind, library=LIBRARIES[library]),
    )


def _empty(kind: Any, library: str) -> nn.Module:
    cls = _mixed(kind, library)
    return cls.__new__(cls)
