"""Masks of the checkpoint that a run starts from."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..backbones.pretrained import (
    load_pretrained,
    pretrained_cfg,
    without_prefix,
)
from ..sparsity import MaskSet
from .budget import sparse_backbone

# In a checkpoint, where masks and all else of the mask training are.
CHECKPOINT_KEY = 'sparse_training'
# What becomes of the masks that come with loaded weights.
TRANSFERS = ('fixed', 'train', 'dense')


def pretrained_source(model: nn.Module,
                      parameters: Mapping[str, nn.Parameter]
                      ) -> tuple[str, Mapping[str, Any]] | None:
    """The ``init_cfg`` that loads a checkpoint into sparse parameters.

    Args:
        model (nn.Module): The model.
        parameters (Mapping[str, nn.Parameter]): The sparse parameters, by
            full name.

    Returns:
        tuple, optional: Prefix of the names of the module that has it, and
        the ``init_cfg``.
    """
    for name, module in model.named_modules():
        config = pretrained_cfg(getattr(module, 'init_cfg', None))
        inside = f'{name}.' if name else ''
        if config is not None and any(
                n.startswith(inside) for n in parameters):
            return inside, config
    return None


def pretrained_state(model: nn.Module,
                     parameters: Mapping[str, nn.Parameter]
                     ) -> tuple[bool, dict[str, Any] | None]:
    """The mask training of the checkpoint that an ``init_cfg`` loads.

    Args:
        model (nn.Module): As for :func:`pretrained_source`.
        parameters (Mapping[str, nn.Parameter]): Likewise.

    Returns:
        tuple: Whether a checkpoint is loaded into a sparse parameter, and
        what it has under ``sparse_training``, the masks by their names in
        this model; None if it has nothing.
    """
    source = pretrained_source(model, parameters)
    if source is None:
        return False, None
    inside, config = source
    state = load_pretrained(config).get(CHECKPOINT_KEY)
    if state is None:
        return True, None
    masks = without_prefix(state['masks'], config.get('prefix'))
    return True, dict(state,
                      masks={inside + n: m for n, m in masks.items()})


def transferred_masks(model: nn.Module,
                      parameters: Mapping[str, nn.Parameter],
                      state: Mapping[str, Any]) -> MaskSet:
    """The masks of a checkpoint, for a network that starts from it.

    They are taken as they are: solved for a classifier, their density is
    another one than a detector's from scratch.

    Args:
        model (nn.Module): The model, its weights loaded.
        parameters (Mapping[str, nn.Parameter]): The sparse parameters.
        state (Mapping[str, Any]): What the checkpoint has under
            ``sparse_training``.

    Returns:
        MaskSet: The masks.

    Raises:
        ValueError: If they are of another member, of other parameters, or
            not the masks of these weights.
    """
    found = sparse_backbone(model)
    stored = state.get('member', {})
    if found is not None:
        here = found[1].describe_member()
        wrong = [f'{key}={stored[key]!r} there and {value!r} here'
                 for key, value in here.items()
                 if key in stored and stored[key] != value]
        if wrong:
            raise ValueError(
                'The checkpoint is of another member of the family than '
                f'{found[0][:-1]}: {", ".join(wrong)}.')
    masks = MaskSet(parameters, state['masks'])
    cut = [name for name, mask in masks.items()
           if parameters[name].detach().masked_fill(mask, 0).any()]
    if cut:
        raise ValueError(
            'The masks of the checkpoint would cut weights of it in '
            f'{", ".join(cut[:6])}{", ..." if len(cut) > 6 else ""}: they '
            'are not the masks that it was trained with. Choose first masks '
            "by the hook's init, or train dense with transfer='dense'.")
    return masks
