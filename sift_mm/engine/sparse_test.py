"""Testing a network on sparse kernels, timed."""

import time
from typing import Any

from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import nn

from sift_mm.deploy import to_sparse
from sift_mm.engine.cost_hook import MasksHook


class SparseTestHook(MasksHook):
    """Puts the tested network on sparse kernels and times its steps.

    Register it behind hooks that look at the network as it was trained.
    """

    # Behind the hook that counts, which has the usual priority.
    priority = 'VERY_LOW'
    _total = _started = 0.0
    _images = 0
    _report: Any = None

    @property
    def seconds(self) -> float:
        """Wall-clock seconds an image so far, in this process.

        Of preprocessing, the network and its predictions; not of loading.
        """
        return self._total / max(1, self._images)

    def before_test(self, runner: Runner) -> None:
        """Replace the network.

        Raises:
            UserError: No layer can run sparse, or there are no kernels.
        """
        # Inside wrappers: of several processes, of test-time augmentation.
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
        """Log what was timed: which layers ran sparse."""
        print_log(str(self._report), logger='current')

    def after_test_iter(
        self, runner: Runner, batch_idx: int, *_: Any, outputs: Any, **__: Any
    ) -> None:
        """Stop the clock; the first step, which warms up, does not count."""
        if batch_idx or len(runner.test_dataloader) == 1:
            self._total += time.perf_counter() - self._started
            self._images += len(outputs)
