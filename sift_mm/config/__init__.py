"""Sparse-IFT in a config: everything follows from family and sparsity.

In a config file, one line gives the network and the channels that its neck
and heads read::

    from sift_mm.config import detector
    model = detector('wide', sparsity=0.9)

A config that was read already is changed by :func:`sparsify`.
"""

from sift_mm.config.conversion import sparsify
from sift_mm.config.helpers import classifier, detector, segmentor

__all__ = ['classifier', 'detector', 'segmentor', 'sparsify']
