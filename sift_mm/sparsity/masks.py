"""The masks of a model."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from sift_mm.errors import UserError, located
from sift_mm.orientation import filters_first
from sift_mm.sparsity.initializers import Initializer
from sift_mm.sparsity.parameters import refuse_pieces
from sift_mm.sparsity.random import generator_for
from sift_mm.sparsity.selection import apply_masks_
from sift_mm.sparsity.structures import Structure, Unstructured


class MaskSet(Mapping[str, Tensor]):
    """Exact bool masks of named parameters.

    Masks belong to a run, not to modules: SyncBuffersHook would average
    buffers, EMAHook would misalign them, and they would change the
    state_dict. They take one byte per weight and change only in place.

    Args:
        parameters (Mapping[str, nn.Parameter]): Sparse parameters by name.
        masks (Mapping[str, Tensor]): Bool masks of the same names and
            shapes, copied to the parameter's device and memory order.

    Raises:
        ValueError: If names, shapes or types do not agree.
        TypeError: If a parameter is sharded over ranks.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        masks: Mapping[str, Tensor],
    ) -> None:
        refuse_pieces(parameters.values())
        missing = [name for name in parameters if name not in masks]
        unknown = [name for name in masks if name not in parameters]
        if missing or unknown:
            raise UserError(
                'The masks are not those of this network: no mask for '
                f'{missing or "none"}, no sparse parameter for '
                f'{unknown or "none"}.'
            )
        self.parameters = dict(parameters)
        self._masks = {}
        for name, parameter in parameters.items():
            mask = masks[name]
            if mask.dtype != torch.bool or mask.shape != parameter.shape:
                raise UserError(
                    f'The mask of {name!r} is {mask.dtype} of shape '
                    f'{tuple(mask.shape)}; the parameter needs a bool mask '
                    f'of shape {tuple(parameter.shape)}.'
                )
            self._masks[name] = torch.empty_like(
                parameter, dtype=torch.bool, requires_grad=False
            ).copy_(mask)

    @classmethod
    def draw(
        cls,
        parameters: Mapping[str, nn.Parameter],
        counts: Mapping[str, int],
        initializer: Initializer,
        seed: int,
        structures: Mapping[str, Structure] | None = None,
    ) -> 'MaskSet':
        """Draw the first masks of a run, the same on every rank.

        Args:
            parameters (Mapping[str, nn.Parameter]): Sparse parameters, not
                changed.
            counts (Mapping[str, int]): Active weights of each parameter,
                which the structure may round.
            initializer (Initializer): Initializer of the masks.
            seed (int): Seed of the masks.
            structures (Mapping, optional): Structure of each mask.
        """
        masks = {}
        for name, parameter in parameters.items():
            weight = filters_first(parameter.detach(), parameter)
            structure = structures[name] if structures else Unstructured()
            count = structure.fit(tuple(weight.shape), counts[name])
            with located(name):
                mask = initializer.mask(
                    weight, count, generator_for(seed, 0, name), structure
                )
            masks[name] = filters_first(mask, parameter)
        return cls(parameters, masks)

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def counts(self) -> dict[str, int]:
        """Count the active weights by name."""
        return {name: int(m.count_nonzero()) for name, m in self.items()}

    def apply_(self, parameters: Mapping[str, Tensor] | None = None) -> None:
        """Set weights outside the masks to zero, in place.

        Args:
            parameters (Mapping[str, Tensor], optional): Weights by the same
                names on any device, such as a moving average; None for the
                masked parameters.
        """
        parameters = self.parameters if parameters is None else parameters
        for name, mask in self.items():
            weight = parameters[name].detach()
            apply_masks_([weight], [mask.to(weight.device)])

    def mask_gradients_(self) -> None:
        """Set gradients outside the masks to zero, in place."""
        live = [n for n, p in self.parameters.items() if p.grad is not None]
        apply_masks_(
            [self.parameters[n].grad for n in live],  # type: ignore
            [self[n] for n in live],
        )
