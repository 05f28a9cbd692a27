"""Optim wrappers whose step is taken under masks."""

from typing import Any

from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from sift_mm.sparsity import MaskTrainer, sparse_parameter_names


class MaskedStep(OptimWrapper):
    """Mixin: an optim wrapper that a mask trainer can be attached to.

    ``step`` is the one place where the dense gradient is complete (backward,
    accumulation and averaging over ranks are done) and not yet clipped.

    Attributes:
        mask_trainer (MaskTrainer, optional): Set by
            :class:`SparseTrainingHook`; without it the wrapper is its
            parent.
        has_hook (bool): Whether there is a hook to set it.
    """

    mask_trainer: MaskTrainer | None = None
    has_hook = False

    def initialize_count_status(
        self, model: nn.Module, init_counts: int, max_counts: int
    ) -> None:
        """Called by the runner before training.

        Raises:
            RuntimeError: If a Sparse-IFT network is about to be trained
                without masks, at several times the FLOPs it is meant to have.
        """
        super().initialize_count_status(model, init_counts, max_counts)
        if not self.has_hook and sparse_parameter_names(model):
            raise RuntimeError(
                'The network has layers that are meant to be sparse, but no '
                "hook trains their masks: add dict(type='SparseTrainingHook')"
                ' to custom_hooks (a config that sets the list replaces it), '
                'or take the plain OptimWrapper to train it dense.'
            )


@OPTIM_WRAPPERS.register_module()
class SparseOptimWrapper(MaskedStep):
    """MMEngine's OptimWrapper with mask training."""

    def step(self, **kwargs: Any) -> None:
        """Mask gradients, clip, step; update masks when that is due.

        Args:
            **kwargs: Arguments of the optimizer's step.
        """
        step = super().step
        if self.mask_trainer is None:
            step(**kwargs)
        else:
            self.mask_trainer.step(self.optimizer, lambda: step(**kwargs))


@OPTIM_WRAPPERS.register_module()
class SparseAmpOptimWrapper(MaskedStep, AmpOptimWrapper):
    """MMEngine's AmpOptimWrapper with mask training.

    A step whose gradients overflowed changes neither weights nor masks.
    """

    def step(self, **kwargs: Any) -> None:
        """Unscale and mask gradients, clip, step; update masks when due.

        Args:
            **kwargs: Arguments of the optimizer's step.
        """
        if self.mask_trainer is None:
            super().step(**kwargs)
            return
        # The parent unscales only in order to clip, and gradients cannot be
        # unscaled twice, so its step is written out here.
        self.loss_scaler.unscale_(self.optimizer)

        def run() -> None:
            if self.clip_grad_kwargs:
                self._clip_grad()
            self.loss_scaler.step(self.optimizer, **kwargs)

        self.mask_trainer.step(self.optimizer, run)
        self.loss_scaler.update(self._scale_update_param)
