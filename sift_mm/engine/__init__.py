"""Mask training in an MMEngine run: optim wrappers and a hook."""

from .hook import SparseTrainingHook
from .optim_wrapper import SparseAmpOptimWrapper, SparseOptimWrapper

__all__ = ['SparseAmpOptimWrapper', 'SparseOptimWrapper', 'SparseTrainingHook']
