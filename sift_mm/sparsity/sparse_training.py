"""Mask training of any network in a plain PyTorch loop."""

import warnings
from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from sift_mm.errors import UserError
from sift_mm.orientation import filter_shape
from sift_mm.sparsity.algorithms import AlgorithmLike
from sift_mm.sparsity.execution import SparseExecution
from sift_mm.sparsity.first_masks import (
    draw_masks,
    flops_per_weight,
)
from sift_mm.sparsity.masks import MaskSet
from sift_mm.sparsity.metrics import density
from sift_mm.sparsity.options import MaskOptions
from sift_mm.sparsity.parameters import layer_densities, select_parameters
from sift_mm.sparsity.saved_state import (
    check_counts,
    check_state,
    find_changes,
)
from sift_mm.sparsity.structures import (
    check_structures,
    fit_counts,
    rounding,
)
from sift_mm.sparsity.updates import UpdateReport
from sift_mm.validation import Count, checked


class SparseTraining:
    """Mask training in a plain PyTorch loop.

    Call :meth:`step` in place of ``optimizer.step()``, which raises an error
    from then on. Keep the order: ``sift_mm.transform``, the optimizer, this
    class (it sets weights outside the first masks to zero), checkpoints.

    Args:
        model (nn.Module): Network, which keeps its dense tensors.
        optimizer (Optimizer): Optimizer of the network's parameters.
        algorithm (str | dict | Algorithm): 'RigL' or another registered
            algorithm.
        steps (int): Optimizer steps of the whole training.
        first_pass (Callable, optional): Function that runs the network on a
            first batch and returns the loss, for ``init='SNIP'`` and 'GraSP';
            for 'SynFlow' it returns the output for an input of ones.
        **options: Other options of :class:`MaskOptions`.

    Raises:
        ValueError: If an argument is wrong, layers and arguments have several
            sparsities, or the optimizer lacks a sparse parameter.
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        algorithm: AlgorithmLike = 'RigL',
        *,
        steps: Count,
        first_pass: Callable[[], Any] | None = None,
        **options: Any,
    ) -> None:
        given = dict(algorithm=algorithm, **options)
        chosen = MaskOptions.of(type(self).__name__, given)
        parameters = select_parameters(model, chosen.include, chosen.exclude)
        layers = {
            name: density
            for name, density in layer_densities(model).items()
            if name in parameters
        }
        share = chosen.shares
        shapes = {n: filter_shape(p) for n, p in parameters.items()}
        needed = share.needs_sparsity_for(shapes)
        sparsity = chosen.nominal_sparsity(layers.values(), needed)
        asked = share.counts(shapes, sparsity)
        self._structures = chosen.structures(parameters)
        counts = fit_counts(self._structures, model, asked)
        seed = chosen.seed or 0
        _check_density(shapes, counts, layers)
        total, more = sum(asked.values()), sum(counts.values())
        if abs(more - total) > max(0.01 * total, len(counts)):
            size = sum(map(prod, shapes.values()))
            text = rounding(self._structures, size, asked, counts)
            warnings.warn(f'{text}.', stacklevel=3)
        passes = [first_pass] if first_pass else []
        self._costs = flops_per_weight(
            chosen.initializer, model, parameters, passes
        )
        masks = draw_masks(
            model,
            parameters,
            chosen.count_schedule(shapes, counts, steps).at(0),
            chosen.initializer,
            seed,
            self._structures,
            passes,
            self._costs,
        )
        self.optimizer = optimizer
        final = None if self._costs else counts
        self.trainer = chosen.trainer(masks, steps, seed, final)
        if still := self.trainer.counts.why_still():
            warnings.warn(still, stacklevel=3)
        execution = SparseExecution(model, masks, chosen.execution)
        self.trainer.set_execution(execution)
        self.trainer.attach(model, optimizer)
        self._drawn = self._weight_versions()

    @property
    def masks(self) -> MaskSet:
        """Masks by parameter name."""
        return self.trainer.masks

    @property
    def density(self) -> float:
        """Share of active weights over all masks together."""
        return density(self.masks)

    @property
    def execution(self) -> str:
        """Line about the execution of masked layers, after the first step."""
        assert self.trainer.execution is not None
        return self.trainer.execution.describe()

    def step(
        self,
        scaler: GradScaler | None = None,
        clip: float | None = None,
        closure: Callable[[], Any] | None = None,
    ) -> UpdateReport | None:
        """Take one optimizer step under the masks, after ``backward()``.

        Args:
            scaler (GradScaler, optional): Scaler of the loss; this method
                calls its ``unscale_``, ``step`` and ``update``.
            clip (float, optional): Largest total norm of the gradients inside
                the masks.
            closure (Callable, optional): Function that clears gradients, runs
                forward and backward pass and returns the loss, in place of a
                ``backward()`` before. It runs once, and again if the optimizer
                calls it, like SAM; gradients are masked each time.

        Returns:
            UpdateReport, optional: Report, or None if no update was due.

        Raises:
            ValueError: If scaler and closure are given together, or a masked
                parameter was replaced since the last step.
        """
        if closure is not None:
            if scaler is not None:
                raise UserError(
                    'step(scaler, closure=...): a GradScaler steps without a '
                    'closure; give one of the two.'
                )
            with torch.enable_grad():
                closure()
        elif scaler is not None:
            scaler.unscale_(self.optimizer)

        def again() -> Any:
            with torch.enable_grad():
                loss = closure() if closure else None
            self.masks.mask_gradients_()
            self._clip(clip)
            return loss

        def run() -> None:
            self._clip(clip)
            if closure is not None:
                self.optimizer.step(again)
            elif scaler is None:
                self.optimizer.step()
            else:
                scaler.step(self.optimizer)

        self.trainer.step(self.optimizer, run)
        if scaler is not None:
            scaler.update()
        return self.trainer.report

    def _clip(self, norm: float | None) -> None:
        if norm is None:
            return
        gradients = [
            p.grad
            for group in self.optimizer.param_groups
            for p in group['params']
            if p.grad is not None
        ]
        _clip_gradients_(gradients, norm)

    def apply_masks(self, model: nn.Module) -> None:
        """Apply the masks to another network, such as an average.

        An average keeps values of dropped weights: call this for
        ``torch.optim.swa_utils.AveragedModel`` after each update, or once
        before use.

        Args:
            model (nn.Module): Network with the same parameter names, or a
                wrapper that holds it as ``module``.

        Raises:
            ValueError: If the network lacks a masked parameter.
        """
        found = dict(model.named_parameters())
        if not self.masks.keys() <= found.keys():
            prefix = 'module.'
            found = {n.removeprefix(prefix): p for n, p in found.items()}
        if missing := [name for name in self.masks if name not in found]:
            raise UserError(
                f'{type(model).__name__} has no parameter '
                f'{", ".join(missing)}; give a copy or average of the network '
                'that is trained.'
            )
        self.masks.apply_(found)

    def state_dict(self) -> dict[str, Any]:
        """Return masks, history and schedule as plain values and tensors."""
        return self.trainer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume, after the network's own ``load_state_dict``.

        Warns if algorithm, interval, end, drop fraction or execution differ
        from the saved ones.

        Raises:
            ValueError: If the state is incomplete or has another network or
                sparsity, or the network's weights were not loaded before.
        """
        if self._weight_versions() == self._drawn:
            raise UserError(
                'The weights of the network were not loaded: create '
                'SparseTraining, then load the network, then this state.'
            )
        check_state(state)
        check_structures(
            state, self._structures, self.trainer.masks.parameters
        )
        wanted = self.trainer.counts.saved(state)
        check_counts(state['masks'], wanted, self._costs)
        now = self.state_dict()
        self.trainer.load_state_dict(state)
        self.trainer.enforce(self.optimizer)
        for key, then, goes_on in find_changes(now, state):
            warnings.warn(
                f'The saved run had {key}={then!r}; it goes on with '
                f'{goes_on!r}.',
                stacklevel=2,
            )

    def _weight_versions(self) -> list[int]:
        return [p._version for p in self.masks.parameters.values()]


def _clip_gradients_(gradients: list[Tensor], norm: float) -> None:
    """Scale gradients to a largest total norm, in place."""
    # clip_grad_norm_ fails on sparse gradients, as of nn.Embedding.
    dense = [g.coalesce() if g.is_sparse else g for g in gradients]
    values = [g._values() if g.is_sparse else g for g in dense]
    total = nn.utils.get_total_norm(values)
    scale = (norm / (total + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(scale.to(gradient.device))


def _check_density(
    shapes: Mapping[str, tuple[int, ...]],
    counts: Mapping[str, int],
    layers: Mapping[str, float],
) -> None:
    """Warn if masks do not get the density that layers are built for."""
    if not layers:
        return
    size = sum(prod(shapes[name]) for name in layers)
    wanted = sum(value * prod(shapes[n]) for n, value in layers.items())
    found = sum(counts[name] for name in layers)
    if abs(found - wanted) > max(0.01 * wanted, len(layers)):
        warnings.warn(
            f'The masks have density {found / size:.4f} where the layers are '
            f'built for {wanted / size:.4f}: FLOPs will not be those of the '
            'dense network.',
            stacklevel=3,
        )
