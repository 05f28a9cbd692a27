"""The steps of weights that were grown late, under Adam and AdamW."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from sift_mm.errors import MistakenType

GrownSteps = Literal['free', 'bounded']


class YoungWeights:
    """Those grown at the last update; none moves by more than lr a step.

    Adam moves a weight by ``lr m' / (sqrt(v') + eps)``, where m' and v' are
    the averages m and v of g and g^2, divided by c1 = 1 - b1^t and c2 =
    1 - b2^t since they started at 0. The first step of a fresh weight, t = 1,
    is lr for whatever g. One grown late starts at m = v = 0 too, but t is
    that of its tensor and c1 = c2 = 1: its first step is (1 - b1) /
    sqrt(1 - b2) lr, with the usual betas 3.2 lr, and under a constant
    gradient the next ones grow to 6.6 lr, as m is filled a hundred times
    faster than v.

    So v is raised before the step as far as is needed, and no further, for
    ``|m'| <= sqrt(v')`` to hold after it: to

        max(v, (m_t^2 c2 / c1^2 - (1 - b2) g^2) / b2),

    where m_t = b1 m + (1 - b1) g is what m becomes. It stays raised, as if
    the weight had met the square of its mean gradient all along, and fades
    with b2: nothing jumps when a weight is young no more. Direction and m are
    Adam's own, and weights that are not young are not touched. A step is
    Adam's, or lr if that is less; under a constant gradient each late one is
    lr, as those of a fresh weight are. The bound holds up to the rounding of
    v, and does not count AdamW's weight decay.

    Args:
        parameters (Mapping[str, nn.Parameter]): The sparse parameters.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = parameters
        self._indices: dict[str, Tensor] = {}

    def replace(self, name: str, grown: Tensor) -> None:
        """Say which weights of a parameter, by a mask, are young from now."""
        self._indices[name] = grown.flatten().nonzero().flatten()

    @staticmethod
    def check(optimizer: Optimizer) -> None:
        """Refuse an optimizer whose steps are not known.

        Raises:
            TypeError: If it is not Adam or AdamW.
        """
        if not isinstance(optimizer, (Adam, AdamW)):
            raise MistakenType(
                "grown_steps='bounded' is for Adam and AdamW, and this is "
                f"{type(optimizer).__name__}; use 'free'."
            )

    @contextmanager
    def bounded(self, optimizer: Optimizer) -> Iterator[None]:
        """Bound the steps that are taken inside.

        Where the optimizer begins one: gradients are clipped by then.
        """
        self.check(optimizer)
        hook = optimizer.register_step_pre_hook(self._bound)
        try:
            yield
        finally:
            hook.remove()

    @torch.no_grad()
    def _bound(self, optimizer: Optimizer, *_: Any) -> None:
        # A fused step is called and left out by a loss scaler.
        overflowed = getattr(optimizer, 'found_inf', None)
        if overflowed is not None and bool(overflowed):
            return
        young = {id(self.parameters[n]): i for n, i in self._indices.items()}
        for group in optimizer.param_groups:
            for parameter in group['params']:
                slots = optimizer.state.get(parameter)
                index = young.get(id(parameter))
                # Without slots t is 0, and a first step needs no bound.
                if slots and index is not None and parameter.grad is not None:
                    decoupled = group.get(
                        'decoupled_weight_decay', isinstance(optimizer, AdamW)
                    )
                    _bound_(parameter, group, slots, index, decoupled)

    def state_dict(self) -> dict[str, Tensor]:
        """Flat indices by parameter: int64, in main memory."""
        return {name: index.cpu() for name, index in self._indices.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self._indices = {
            name: index.to(self.parameters[name].device)
            for name, index in state.items()
        }


def _bound_(
    parameter: nn.Parameter,
    group: Mapping[str, Any],
    slots: Mapping[str, Tensor],
    index: Tensor,
    decoupled: bool,
) -> None:
    """Raise the second moments of some weights, in place."""
    # Of any memory order: each tensor may have another.
    where = torch.unravel_index(index, parameter.shape)
    assert parameter.grad is not None
    gradient = parameter.grad[where].double()
    if group['maximize']:
        gradient = -gradient
    if not decoupled:
        gradient += group['weight_decay'] * parameter[where].double()
    b1, b2 = group['betas']
    steps = slots['step'].double() + 1
    c1, c2 = 1 - b1**steps, 1 - b2**steps
    first = b1 * slots['exp_avg'][where].double() + (1 - b1) * gradient
    needed = (first**2 * (c2 / c1**2) - (1 - b2) * gradient**2) / b2
    second = slots['exp_avg_sq']
    second[where] = torch.maximum(second[where], needed.to(second.dtype))
