"""Trained networks made ready for inference."""

from sift_mm.deploy.folding import FoldReport, fold
from sift_mm.deploy.sparse import SparseReport, to_sparse

__all__ = ['FoldReport', 'SparseReport', 'fold', 'to_sparse']
