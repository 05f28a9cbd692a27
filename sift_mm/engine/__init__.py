"""Mask training in an MMEngine run: optim wrappers and a hook."""

from sift_mm.engine.hook import SparseTrainingHook
from sift_mm.engine.loading import read_safely
from sift_mm.engine.optim_wrapper import (
    SparseAmpOptimWrapper,
    SparseOptimWrapper,
)
from sift_mm.engine.saving import write_whole_files

__all__ = ['SparseAmpOptimWrapper', 'SparseOptimWrapper', 'SparseTrainingHook']

read_safely()
write_whole_files()
