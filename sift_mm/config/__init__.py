"""Sparse-IFT in a config: all settings follow from family and sparsity.

In a config file, one line sets the network and the input channels of its neck
and heads::

    from sift_mm.config import detector
    model = detector('wide', sparsity=0.9)

Use :func:`sparsify` to change a config in Python.
"""

from sift_mm.config.conversion import sparsify
from sift_mm.config.helpers import classifier, detector, segmentor

__all__ = ['classifier', 'detector', 'segmentor', 'sparsify']
