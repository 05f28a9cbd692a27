"""What tests of the demos share."""

from standins import standins

__all__ = ['standins']
