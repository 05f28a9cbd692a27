"""Trained networks made ready for inference."""

from .fold import FoldReport, fold

__all__ = ['FoldReport', 'fold']
