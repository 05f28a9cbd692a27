"""What tests of experiments share."""

from standins import standins

__all__ = ['standins']
