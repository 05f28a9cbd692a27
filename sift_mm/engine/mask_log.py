"""Scalars of the masks of a run, for MMEngine's visualizer."""

import math
from typing import Any

from mmengine.dist import is_main_process
from torch import Tensor, linalg

from sift_mm.checkpoint.packing import count, pack, unpack
from sift_mm.orientation import filters_first
from sift_mm.sparsity import MaskTrainer, UpdateReport, density
from sift_mm.sparsity.metrics import dead_channels


class MaskLog:
    """Scalars of masks after an optimizer step, ready for the visualizer.

    At each update ``sparse/density``, ``sparse/drop_fraction``,
    ``sparse/moved``, ``sparse/itop_rate`` and ``sparse/doc_rate`` are logged;
    with layers ``sparse/METRIC/PARAMETER`` too, for these metrics:

    - density: Share of active weights.
    - moved: Share of the active weights that were not active when the layer
      was logged before, or when the run began or was resumed.
    - itop_rate, doc_rate: Share of the weights that were active at any time,
      and all the time.
    - dead_inputs, dead_outputs: Input and output channels without an active
      weight, see :func:`dead_channels`.
    - gradient_norm: L2 norm of the active weights' gradient in this step:
      accumulated, averaged over ranks and unscaled, before clipping. Left out
      if the layer had no gradient, or it was not finite.
    - sparse_products: Number of the three products (forward, input gradient,
      weight gradient) that run sparse for some size of input.

    Args:
        trainer (MaskTrainer): Trainer of the run.
        layers (bool | int): True to log layers at each update; a number to log
            them and the shares of the network every so many optimizer steps,
            with an algorithm that keeps its masks too.
    """

    def __init__(self, trainer: MaskTrainer, layers: bool | int) -> None:
        self.trainer = trainer
        self.layers = layers
        self._seen = trainer.steps
        self._norms: dict[str, Tensor] = {}
        self._before = self._packed() if layers else {}

    def _packed(self) -> dict[str, Tensor]:
        return {name: pack(mask) for name, mask in self.trainer.masks.items()}

    def before_step(self) -> None:
        """Take the norms of the complete gradients, if they are logged."""
        step, masks = self.trainer.steps + 1, self.trainer.masks
        if isinstance(self.layers, bool):
            due = self.layers and self.trainer._is_due(step)
        else:
            due = step % self.layers == 0
        if not due or not is_main_process():
            return
        self._norms = {
            name: linalg.vector_norm(
                p.grad.detach().float().masked_fill(~masks[name], 0)
            )
            for name, p in masks.parameters.items()
            if p.grad is not None
        }

    def after_step(self, update: UpdateReport | None) -> dict[str, float]:
        """Return the scalars to log now, if any.

        Args:
            update (UpdateReport, optional): Update of the masks in the step.
        """
        trainer = self.trainer
        # With accumulated gradients, an iteration may have no step.
        if trainer.steps == self._seen or not is_main_process():
            return {}
        self._seen = trainer.steps
        norms, self._norms = self._norms, {}
        if update is not None and update.skipped:
            update = None
        due = update is not None and self.layers is True
        if not isinstance(self.layers, bool):
            due = trainer.steps % self.layers == 0
        if update is None and not due:
            return {}
        found = {
            'sparse/density': density(trainer.masks),
            'sparse/itop_rate': trainer.history.itop_rate(),
            'sparse/doc_rate': trainer.history.degree_of_constraint(),
        }
        if update is not None:
            found['sparse/drop_fraction'] = update.drop_fraction
            found['sparse/moved'] = update.moved
        if due:
            packed = self._packed()
            for name in packed:
                for metric, value in self._layer(name, packed, norms):
                    found[f'sparse/{metric}/{name}'] = value
            self._before = packed
        return found

    def _layer(
        self, name: str, packed: dict[str, Tensor], norms: dict[str, Tensor]
    ) -> list[tuple[str, Any]]:
        """Return the metrics of a layer with their values."""
        trainer, mask = self.trainer, self.trainer.masks[name]
        active, size = count(mask), mask.numel()
        stayed = count(unpack(packed[name] & self._before[name], size))
        dead_inputs, dead_outputs = dead_channels(
            filters_first(mask, trainer.masks.parameters[name])
        )
        execution = trainer.execution
        found = [
            ('density', active / size),
            ('moved', 1 - stayed / active if active else 0.0),
            ('itop_rate', trainer.history.itop_rate(name)),
            ('doc_rate', trainer.history.degree_of_constraint(name)),
            ('dead_inputs', dead_inputs),
            ('dead_outputs', dead_outputs),
            ('sparse_products', execution.products(name) if execution else 0),
        ]
        norm = float(norms[name]) if name in norms else math.nan
        return [*found, ('gradient_norm', norm)] if norm < math.inf else found
