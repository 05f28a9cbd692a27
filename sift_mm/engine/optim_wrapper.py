"""Optim wrappers with a masked step."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from sift_mm.errors import UserCallError, UserTypeError
from sift_mm.sparsity import MaskTrainer, sparse_parameter_names


@OPTIM_WRAPPERS.register_module()
class SparseOptimWrapper(OptimWrapper):
    """OptimWrapper with mask training.

    In ``step`` the dense gradient is complete, after backward, accumulation
    and averaging over ranks, and not yet clipped. Without ``mask_trainer`` the
    wrapper acts like its parent. :class:`SparseTrainingHook` sets
    ``mask_trainer``, and ``has_hook`` before; ``before_step``, if set, is
    called with the complete gradients.
    """

    mask_trainer: MaskTrainer | None = None
    before_step: Callable[[], None] | None = None
    has_hook = False

    def initialize_count_status(
        self, model: nn.Module, init_counts: int, max_counts: int
    ) -> None:
        """Check, before training, that a Sparse-IFT network gets masks.

        Raises:
            RuntimeError: If no hook trains masks: the FLOPs would be several
                times those of the dense network.
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
        """Mask gradients, clip and step; update masks if due."""
        step = super().step
        if self.mask_trainer is None:
            step(**kwargs)
        else:
            self._masked_step(lambda: step(**kwargs))

    def _masked_step(self, run: Callable[[], None]) -> None:
        assert self.mask_trainer is not None
        if self.before_step is not None:
            self.before_step()
        self.mask_trainer.step(self.optimizer, run)


@OPTIM_WRAPPERS.register_module()
class SparseAmpOptimWrapper(SparseOptimWrapper, AmpOptimWrapper):
    """AmpOptimWrapper with mask training.

    A step with overflowed gradients changes neither weights nor masks.
    """

    def step(self, **kwargs: Any) -> None:
        """Unscale and mask gradients, clip and step; update masks if due."""
        if self.mask_trainer is None:
            super().step(**kwargs)
            return
        # The parent unscales only to clip, and gradients cannot be unscaled
        # twice, so its step is repeated here.
        self.loss_scaler.unscale_(self.optimizer)

        def run() -> None:
            if self.clip_grad_kwargs:
                self._clip_grad()
            self.loss_scaler.step(self.optimizer, **kwargs)

        self._masked_step(run)
        self.loss_scaler.update(self._scale_update_param)


def make_maskable(optim_wrapper: Any) -> SparseOptimWrapper:
    """Give a run's optim wrapper a masked step, in place, and return it.

    The runner builds the wrapper before any hook runs. Only ``step`` has to
    change, so the wrapper gets a new class and keeps its state.

    Raises:
        TypeError: If the wrapper has several optimizers or a custom step.
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
    """Count the steps for MMEngine's schedulers.

    Schedulers wrap the step of the instance with a counter, which would still
    call the step of the old class.
    """
    step = type(optim_wrapper).step

    @wraps(step)
    def counted(**kwargs: Any) -> None:
        optim_wrapper._global_step += 1
        step(optim_wrapper, **kwargs)

    counted._with_counter = True  # type: ignore[attr-defined]
    optim_wrapper.step = counted
