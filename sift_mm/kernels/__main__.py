"""Build the kernels beforehand: ``python -m sift_mm.kernels``."""

import sys

from .build import KernelsUnavailable, build, library

try:
    path = build()
    library()
except KernelsUnavailable as error:
    sys.exit(f'sparse execution is not available: {error}')
print(path)
