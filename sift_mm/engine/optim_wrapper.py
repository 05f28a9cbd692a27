"""Optim wrappers whose step is taken under masks."""

from functools import wraps
from typing import Any

from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from sift_mm.errors import UserCallError, UserTypeError
from sift_mm.sparsity import MaskTrainer, sparse_parameter_names


@OPTIM_WRAPPERS.register_module()
class SparseOptimWrapper(OptimWrapper):
    """MMEngine's OptimWrapper, which a mask trainer can be attached to.

    ``step`` is the one place where the dense gradient is complete (backward,
    accumulation and averaging over ranks are done) and not yet clipped.
    :class:`SparseTrainingHook` sets ``mask_trainer``, without which the
    wrapper is its parent, and says by ``has_hook`` that it will.
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
        meant = any(getattr(m, 'unmasked', False) for m in model.modules())
        if not (self.has_hook or meant) and sparse_parameter_names(model):
            raise UserCallError(
                'The network has layers that are meant to be sparse, but no '
                "hook trains their masks: add dict(type='SparseTrainingHook')"
                ' to custom_hooks (a config that sets the list replaces it).'
            )

    def step(self, **kwargs: Any) -> None:
        """Mask gradients, clip, step; update masks when that is due."""
        step = super().step
        if self.mask_trainer is None:
            step(**kwargs)
        else:
            self.mask_trainer.step(self.optimizer, lambda: step(**kwargs))


@OPTIM_WRAPPERS.register_module()
class SparseAmpOptimWrapper(SparseOptimWrapper, AmpOptimWrapper):
    """MMEngine's AmpOptimWrapper with mask training.

    A step whose gradients overflowed changes neither weights nor masks.
    """

    def step(self, **kwargs: Any) -> None:
        """Unscale and mask gradients, clip, step; update masks when due."""
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


def make_maskable(optim_wrapper: Any) -> SparseOptimWrapper:
    """Give a run's optim wrapper the masked step, in place.

    The wrapper is built before hooks have a say, by a config or by a
    script's ``--amp``; all that it needs is another ``step``, so that its
    class is what changes, and its state stays. The same object comes back.

    Raises:
        TypeError: If it has several optimizers, or a step of its own whose
            order is not known.
    """
    kind: Any = type(optim_wrapper)
    if isinstance(optim_wrapper, SparseOptimWrapper):
        return optim_wrapper
    mixin: Any = {
        OptimWrapper.step: SparseOptimWrapper,
        AmpOptimWrapper.step: SparseAmpOptimWrapper,
    }.get(getattr(kind, 'step', None))
    if mixin is None or not isinstance(optim_wrapper, OptimWrapper):
        raise UserTypeError(
            f'SparseTrainingHook trains masks in one OptimWrapper or '
            f'AmpOptimWrapper; this run has {kind.__name__}, whose step is '
            'another: set optim_wrapper.type to one of the two.'
        )
    optim_wrapper.__class__ = type(f'Sparse{kind.__name__}', (mixin, kind), {})
    if vars(optim_wrapper).pop('step', None) is not None:
        _count_steps(optim_wrapper)
    return optim_wrapper


def _count_steps(optim_wrapper: Any) -> None:
    """Count steps as MMEngine's schedulers have them counted.

    They put a counter around the step that they find, in the instance; it
    would go on calling the step of the class that was.
    """
    step = type(optim_wrapper).step

    @wraps(step)
    def counted(**kwargs: Any) -> None:
        optim_wrapper._global_step += 1
        step(optim_wrapper, **kwargs)

    counted._with_counter = True  # type: ignore[attr-defined]
    optim_wrapper.step = counted
