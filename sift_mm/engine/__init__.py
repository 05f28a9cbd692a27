"""Mask training in MMEngine runs: optim wrappers and a hook."""

from sift_mm.engine.hook import SparseTrainingHook
from sift_mm.engine.optim_wrapper import (
    SparseAmpOptimWrapper,
    SparseOptimWrapper,
)
from sift_mm.engine.saving import use_safe_files

__all__ = [
    'SparseAmpOptimWrapper',
    'SparseOptimWrapper',
    'SparseTrainingHook',
    'use_safe_files',
]
