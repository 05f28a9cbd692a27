"""Mask training in an MMEngine run: optim wrappers and a hook."""

from sift_mm.engine.hook import SparseTrainingHook
from sift_mm.engine.loading import read_compact_checkpoints
from sift_mm.engine.optim_wrapper import (
    SparseAmpOptimWrapper,
    SparseOptimWrapper,
)
from sift_mm.engine.saving import write_whole_files

__all__ = ['SparseAmpOptimWrapper', 'SparseOptimWrapper', 'SparseTrainingHook']

read_compact_checkpoints()
write_whole_files()
