"""Memory setting of glibc: freed blocks are kept for later allocations.

By default glibc returns freed blocks above 32 MiB to the system and gets the
next ones as fresh pages, with one page fault each. With large activations the
faults take up to a third of a training step, dense or sparse.
"""

import ctypes
import os

# From malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = -1


def keep_freed_memory() -> bool:
    """Tell the allocator to keep freed memory for later blocks.

    The process then never shrinks. Other programs get the same effect with
    ``MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000`` or jemalloc. A
    setting of the user has precedence.

    Returns:
        bool: True if the setting was made; False without glibc, or if the
        user has set an allocator or its options.
    """
    variables = 'MALLOC_MMAP_MAX_', 'MALLOC_TRIM_THRESHOLD_', 'LD_PRELOAD'
    tunables = os.environ.get('GLIBC_TUNABLES', '')
    if 'glibc.malloc' in tunables or any(map(os.environ.get, variables)):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, 'gnu_get_libc_version'):
        return False
    return bool(
        library.mallopt(_M_MMAP_MAX, 0)
        and library.mallopt(_M_TRIM_THRESHOLD, _NEVER)
    )
