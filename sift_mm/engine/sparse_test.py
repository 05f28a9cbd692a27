"""Timed test of a network on sparse kernels."""

import time
from typing import Any

from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import nn

from sift_mm.deploy import to_sparse
from sift_mm.engine.cost_hook import MasksHook


class SparseTestHook(MasksHook):
    """Hook that runs the tested network on sparse kernels and times it.

    Register it after hooks that read the trained network.
    """

    # After CostHook, which has normal priority.
    priority = 'VERY_LOW'
    _total = _started = 0.0
    _images = 0
    _report: Any = None

    @property
    def seconds(self) -> float:
        """Wall-clock seconds per image in this process, without loading."""
        return self._total / max(1, self._images)

    def before_test(self, runner: Runner) -> None:
        """Replace the network.

        Raises:
            UserError: If no layer can run sparse, or there are no kernels.
        """
        # Unwrap data-parallel and test-time augmentation wrappers.
        holder: Any = runner
        name = 'model'
        while isinstance(
            getattr(getattr(holder, name), 'module', None), nn.Module
        ):
            holder, name = getattr(holder, name), 'module'
        model = getattr(holder, name)
        model.eval()
        model = to_sparse(model, self.masks)
        setattr(holder, name, model)
        self._report = model.sparse_report

    def before_test_iter(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def after_test(self, *args: Any, **kwargs: Any) -> None:
        """Log the layers that ran sparse."""
        print_log(str(self._report), logger='current')

    def after_test_iter(
        self, runner: Runner, batch_idx: int, *_: Any, outputs: Any, **__: Any
    ) -> None:
        """Stop the clock; the first step is a warm-up."""
        if batch_idx or len(runner.test_dataloader) == 1:
            self._total += time.perf_counter() - self._started
            self._images += len(outputs)
