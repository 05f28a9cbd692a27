"""Trained networks made ready for inference."""

from sift_mm.deploy.folding import FoldReport, fold

__all__ = ['FoldReport', 'fold']
