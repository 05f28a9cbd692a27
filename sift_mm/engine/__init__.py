"""Mask training in MMEngine runs: optim wrappers, a hook, a data set."""

from sift_mm.engine.hook import SparseTrainingHook
from sift_mm.engine.in_memory import InMemoryDataset
from sift_mm.engine.optim_wrapper import (
    SparseAmpOptimWrapper,
    SparseOptimWrapper,
)
from sift_mm.engine.saving import use_safe_files

__all__ = [
    'InMemoryDataset',
    'SparseAmpOptimWrapper',
    'SparseOptimWrapper',
    'SparseTrainingHook',
    'use_safe_files',
]
