"""The members of the Sparse-IFT family, and how to put them in a network."""

from .composite import Composite
from .doped import Doped
from .factorized import Factorized
from .parallel import Parallel

__all__ = ['Composite', 'Doped', 'Factorized', 'Parallel']
