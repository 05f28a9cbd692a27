"""The members of the Sparse-IFT family, and how to put them in a network."""

from .composite import Composite
from .doped import Doped
from .factorized import Factorized
from .members import Member
from .parallel import Parallel
from .transform import Replacement, TransformReport, transform
from .wide import Wide

__all__ = [
    'Composite',
    'Doped',
    'Factorized',
    'Member',
    'Parallel',
    'Replacement',
    'TransformReport',
    'Wide',
    'transform',
]
