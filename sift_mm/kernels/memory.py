"""Setting of the C library's allocator: freed memory is kept.

By default glibc gives blocks above 32 MiB back to the system when they are
freed, and gets the next ones as pages that are zeroed at the first touch, one
fault each: up to a third of a training step with large activations, for dense
networks and sparse ones alike.
"""

import ctypes
import os

# From malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = -1


def keep_freed_memory() -> bool:
    """Tell the allocator to keep freed memory for the next blocks.

    The process then holds as much memory as it once used. Other programs get
    the same by ``MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000``, or
    by jemalloc. What the user has set by such a variable is left as it is.

    Returns:
        bool: Whether the setting was made: not where the user has made one,
        nor where the C library is not glibc.
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
