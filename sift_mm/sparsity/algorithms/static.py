"""Static masks."""

from sift_mm.sparsity.algorithms.algorithm import ALGORITHMS, Algorithm


@ALGORITHMS.register
class Static(Algorithm):
    """Algorithm that never changes the first masks."""

    dynamic = False
