"""Masks of a pruned network."""

import torch
from torch import Tensor

from sift_mm.errors import UserError
from sift_mm.sparsity.initializers.initializer import (
    INITIALIZERS,
    Initializer,
    count_tolerance,
)
from sift_mm.sparsity.structures import Structure, Unstructured


@INITIALIZERS.register
class FromWeights(Initializer):
    """Initializer with the nonzero weights of a pruned network.

    It cannot resume a run, since weights that have just been grown are zero.
    """

    @torch.no_grad()
    def mask(
        self,
        weight: Tensor,
        count: int,
        generator: torch.Generator,
        structure: Structure = Unstructured(),  # noqa: B008
    ) -> Tensor:
        """Return the mask of the nonzero weights.

        A structure also gets the places of weights that are zero by chance.

        Raises:
            ValueError: If their number differs from ``count`` by more than
                :func:`count_tolerance`, or they violate the structure.
        """
        mask = weight != 0
        found = int(mask.count_nonzero())
        if abs(found - count) > count_tolerance(weight.numel()):
            raise UserError(
                f'A weight of shape {tuple(weight.shape)} has {found} '
                f'non-zero entries where the sparsity asks for {count}; '
                'load a network pruned to that sparsity, or choose the '
                "initial mask 'TopK' or 'Random'."
            )
        if isinstance(structure, Unstructured):
            return mask
        whole = structure.first(mask.float(), count)
        if not (mask & ~whole).any():
            return whole
        if structure.has(mask):
            return mask  # Filters that SRigL ablated.
        raise UserError(
            f'The non-zero entries of a weight of shape '
            f'{tuple(weight.shape)} are not of structure='
            f'{type(structure).__name__!r}; load a network pruned so, or '
            "choose the initial mask 'TopK' or 'Random'."
        )
