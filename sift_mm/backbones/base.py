"""Base of all Sparse-IFT backbones: the interface to the engine."""

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal

import torch
from torch import nn

from sift_mm.checkpoint.reading import load_pretrained
from sift_mm.checkpoint.state import (
    CHECKPOINT_KEY,
    check_keys,
    pretrained_cfg,
    without_prefix,
)
from sift_mm.errors import UserCallError, UserError
from sift_mm.flops.isoflop import INNER, SPARSE_FACTORS
from sift_mm.layers import Composite, Member, Wide, families
from sift_mm.validation import Choice

FamilyName = Annotated[str, Choice(families)]
Flops = Literal['match', 'match_model', 'nominal']
Inner = Annotated[str, Choice(lambda: INNER)]
SparseFactors = Annotated[str, Choice(lambda: SPARSE_FACTORS)]


class SparseIFTBackbone(nn.Module):
    """Base of the backbones of the family.

    Attributes:
        family (str, optional): Member of the family; None is the dense
            network.
        sparsity (float): Nominal share of zero weights.
        flops (str): FLOPs that masks match, see :class:`SparseIFTMixin`.
        member (Member, optional): The member with its variants.
        match_shape (tuple[int, ...]): Height and width of images, in pixels,
            or length of texts, in tokens, at which FLOPs are matched.
        unmasked (bool): Whether training without masks is allowed.
        masks_attached (bool): Whether a hook applies the masks.
        core_keys (Pattern, optional): Keys of its ``state_dict`` that a
            checkpoint must have; None requires all.
        loaded (Mapping, optional): Mask training of the loaded checkpoint,
            until the hook takes it.
    """

    family: str | None
    sparsity: float
    flops: str
    member: Member | None
    match_shape: tuple[int, ...]
    unmasked = False
    masks_attached = False
    core_keys: re.Pattern[str] | None = None
    loaded: Mapping[str, Any] | None = None
    # Attributes of MMEngine's BaseModule.
    _is_init: bool
    init_cfg: Any

    def _become(
        self,
        member: Member | None,
        flops: str,
        match_shape: tuple[int, ...] | None,
        unmasked: bool,
    ) -> None:
        """Store the member and its options, once the network is built."""
        self.member = member
        self.family = member.family if member else None
        self.sparsity = member.sparsity if member else 0.0
        self.flops = flops
        self.unmasked = unmasked
        if match_shape is not None:
            self.match_shape = tuple(match_shape)
        if member is not None:
            self.register_forward_pre_hook(_refuse_unmasked_training)

    def _has_weights(self) -> bool:
        """Load the checkpoint of ``init_cfg``; return whether weights exist.

        The library would read the file again, and some networks rename or
        drop keys. A checkpoint of another network is refused.
        """
        config = pretrained_cfg(self.init_cfg)
        if self._is_init or config is None:
            return self._is_init
        checkpoint = load_pretrained(config)
        state, prefix = checkpoint['state_dict'], config.get('prefix')
        check_keys(self, state, config['checkpoint'], prefix)
        self.load_state_dict(without_prefix(state, prefix), strict=False)
        self.loaded = {CHECKPOINT_KEY: checkpoint.get(CHECKPOINT_KEY)}
        self._is_init = True
        return True

    def dense_twin(self) -> nn.Module:
        """Build the library's own network, for comparison.

        The random state of the run does not change.
        """
        raise NotImplementedError

    def sparse_parameter_names(self) -> list[str]:
        """Return the names of masked weights; none with family=None."""
        return [
            f'{name}.{parameter}'
            for name, layer in self.named_modules()
            if isinstance(layer, (Composite, Wide))
            for parameter in layer.sparse_parameter_names()
        ]

    def describe_member(self) -> dict[str, Any]:
        """Return the member of the family, as a checkpoint stores it."""
        if self.member is None:
            return {}
        return dict(asdict(self.member), sparse_factors=self.member.factors)

    @property
    def growth(self) -> float:
        """Width of the features, divided by the dense twin's."""
        return 1.0

    image_channels: int = 3

    def advice(self, classifier: float = 0) -> str:
        """Return advice for a network that no masks bring to the dense FLOPs.

        Args:
            classifier (float): FLOPs of the dense network's classifier.
        """
        return "Choose another sparsity, or set flops='nominal'."

    def extra_repr(self) -> str:
        """Return family, sparsity and FLOPs, for ``print``."""
        return (
            f'family={self.family!r}, sparsity={self.sparsity}, '
            f'flops={self.flops!r}'
        )


def sparse_backbone(
    model: nn.Module,
) -> tuple[str, SparseIFTBackbone] | None:
    """Return prefix ('backbone.') and module of the backbone with a family.

    Raises:
        ValueError: If there are several: one sparsity cannot match both.
    """
    found = [
        ((f'{name}.' if name else ''), module)
        for name, module in model.named_modules()
        if isinstance(module, SparseIFTBackbone) and module.family
    ]
    if len(found) > 1:
        raise UserError(
            'The model has several Sparse-IFT backbones with a '
            f'family, {[name for name, _ in found]}; masks can '
            'be trained for one.'
        )
    return found[0] if found else None


def make_member(
    family: str | None,
    sparsity: float | None,
    inner: str | None,
    sparse_factors: str | None,
    parallel_inner: str = 'none',
) -> Member | None:
    """Build the member of a backbone's arguments, None for dense.

    ``parallel_inner`` is the default of ``inner`` for 'parallel'.
    """
    if family is None:
        if sparsity or inner or sparse_factors:
            raise UserError(
                f'sparsity={sparsity}, inner={inner!r} or sparse_factors='
                f'{sparse_factors!r} without a family: the network would '
                "be the dense one. Set family='wide' (or another), or "
                'leave them out.'
            )
        return None
    if sparsity is None:
        raise UserError(
            f'family={family!r} needs a sparsity, the one '
            'number that sizes and masks follow from.'
        )
    if inner is None:
        inner = parallel_inner if family == 'parallel' else 'none'
    return Member(family, sparsity, inner, sparse_factors)


def _refuse_unmasked_training(backbone: Any, _: Any) -> None:
    """Stop a run of MMEngine that would train all weights by mistake.

    The hook that trains masks sets ``masks_attached`` before the first call.
    """
    if (
        backbone.masks_attached
        or backbone.unmasked
        or not backbone.training
        or not torch.is_grad_enabled()
        or not _in_training_run()
    ):
        return
    names = backbone.sparse_parameter_names()
    if any(backbone.get_parameter(name).requires_grad for name in names):
        raise UserCallError(
            f'The backbone (family={backbone.family!r}, sparsity='
            f'{backbone.sparsity}) is meant to be sparse, but no hook trains '
            'its masks, and it would train dense at up to 1 / (1 - s) times '
            "the FLOPs: add dict(type='SparseTrainingHook') to custom_hooks "
            '(a config that sets the list replaces it), or set '
            'unmasked=True in the backbone if that is meant.'
        )


def _in_training_run() -> bool:
    from mmengine.logging import MessageHub

    hub = MessageHub.get_current_instance()
    # Every runner's RuntimeInfoHook writes it before training.
    return 'max_iters' in hub.runtime_info
