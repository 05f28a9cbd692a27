"""Detection of changes to masked weights between optimizer steps."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from sift_mm.errors import UserError
from sift_mm.sparsity.optimizers import with_wrapped
from sift_mm.sparsity.selection import flat_pair

# Weights of a layer to look at in each step on a CPU: some 50 microseconds.
_WINDOW = 1 << 14
# Steps between two looks on another device, where the host has to wait.
_SELDOM = 100


class WeightWatch:
    """Detector of masked weights that were written or replaced between steps.

    A version counter, an address and the identity of each parameter are
    compared. Writes to ``parameter.data`` are not counted: on a CPU each
    step reads 16,384 weights of a layer in turn, elsewhere each 100th step
    reads all.

    Args:
        masks (Mapping[str, Tensor]): Masks by parameter name.
        parameters (Mapping[str, nn.Parameter]): Parameters by name.
    """

    def __init__(
        self,
        masks: Mapping[str, Tensor],
        parameters: Mapping[str, nn.Parameter],
    ) -> None:
        self.masks = masks
        self.parameters = parameters
        self.model: nn.Module | None = None
        self._seen: dict[str, tuple[int, int]] = {}
        self._slots: list[Any] = []
        self._looks = 0

    def remember(self, optimizer: Optimizer) -> None:
        """Record that the current weights and slots are masked."""
        self._seen = {n: _mark(p) for n, p in self.parameters.items()}
        self._slots = [each.state for each in with_wrapped(optimizer)]

    def check_objects(self, optimizer: Optimizer) -> None:
        """Refuse parameters that the network or the optimizer has replaced.

        Raises:
            ValueError: If a masked parameter was replaced, has another shape
                or device than its mask, or is missing in the optimizer.
        """
        held = {
            id(p) for group in optimizer.param_groups for p in group['params']
        }
        missing = [
            name
            for name, parameter in self.parameters.items()
            if parameter.requires_grad and id(parameter) not in held
        ]
        for name, parameter in self.parameters.items():
            mask = self.masks[name]
            if not self._is_in_model(name):
                raise UserError(
                    f'The network has another parameter {name!r} than the '
                    'one that is masked: it was assigned, or replaced by '
                    'load_state_dict(assign=True) or a parametrization. '
                    'Write values in place (load_state_dict, copy_), or '
                    'create optimizer and masks after that.'
                )
            if parameter.shape != mask.shape:
                raise UserError(
                    f'The weight {name!r} has shape {tuple(parameter.shape)} '
                    f'and its mask {tuple(mask.shape)}: another tensor was '
                    'assigned to its data. Create optimizer and masks after '
                    'that.'
                )
            if parameter.device != mask.device:
                raise UserError(
                    f'The weight {name!r} is on {parameter.device} and its '
                    f'mask on {mask.device}: move the network to its device '
                    'before optimizer and masks are created.'
                )
        if missing:
            raise UserError(
                f'The optimizer does not hold {", ".join(missing)}; create it '
                'after sift_mm.transform, from the parameters of the new '
                'network, and do not take masked parameters out of its '
                'groups.'
            )

    def _is_in_model(self, name: str) -> bool:
        if self.model is None:
            return True
        path, _, leaf = name.rpartition('.')
        try:
            owner = self.model.get_submodule(path)
        except AttributeError:
            return False
        return owner._parameters.get(leaf) is self.parameters[name]

    def find_strays(self) -> list[str]:
        """Return the names of weights with nonzeros outside their masks.

        Only weights that were written since :meth:`remember` are read.
        """
        self._looks += 1
        return [
            name
            for name, parameter in self.parameters.items()
            if (
                self._seen.get(name) not in (None, _mark(parameter))
                or self._sees_strays(name)
            )
            and parameter.detach().masked_fill(self.masks[name], 0).any()
        ]

    def slots_replaced(self, optimizer: Optimizer) -> bool:
        """Return True if the optimizer's state was replaced since then."""
        states = [each.state for each in with_wrapped(optimizer)]
        return bool(self._slots) and [*map(id, states)] != [
            *map(id, self._slots)
        ]

    def _sees_strays(self, name: str) -> bool:
        """Look at the weights of a layer whose turn it is."""
        weight, mask = self.parameters[name].detach(), self.masks[name]
        pair = flat_pair(weight, mask)
        if weight.device.type != 'cpu' or pair is None:
            # Other memory orders have no part in one piece.
            if self._looks % _SELDOM:
                return False
            return bool(weight.masked_fill(mask, 0).any())
        windows = max(1, -(-weight.numel() // _WINDOW))
        start = self._looks % windows * _WINDOW
        values, inside = (t[start : start + _WINDOW] for t in pair)
        # NumPy compares bytes faster than PyTorch, by 5.
        return bool(((values != 0).numpy() > inside.numpy()).any())


def _mark(parameter: nn.Parameter) -> tuple[int, int]:
    return parameter._version, parameter.data_ptr()
