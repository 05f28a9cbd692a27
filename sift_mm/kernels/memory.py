"""Memory that a process keeps between two passes over a network."""

import ctypes
import os

# Parameters of glibc's ``mallopt``.
_TRIM_THRESHOLD = -1
_MMAP_MAX = -4

#: Whoever sets one of them has chosen.
CHOICES = (
    'GLIBC_TUNABLES',
    'MALLOC_MMAP_MAX_',
    'MALLOC_MMAP_THRESHOLD_',
    'MALLOC_TRIM_THRESHOLD_',
)


def keep_freed() -> bool:
    """Let the process keep what it frees, for what it allocates next.

    glibc returns blocks above 32 MiB to the system, and gets them back as
    pages that have to be zeroed one fault at a time. Wide activations are
    such blocks, freed and allocated again in every pass.

    Returns:
        Whether this was done: not where the environment has chosen, nor
        without glibc's allocator.
    """
    if any(name in os.environ for name in CHOICES):
        return False
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    return mallopt is not None and all(
        mallopt(parameter, value) == 1
        for parameter, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1))
    )
