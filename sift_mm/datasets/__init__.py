"""The data sets that runs read: a file each, which registers what is known.

A new file in this folder that calls :func:`register` is all that the tools
need to prepare a data set, to count its epochs and to name it in a metafile.
"""

from sift_mm.datasets.table import DATA_SETS, DataSet, find_data_set, register
from sift_mm.discovery import import_modules

__all__ = ['DATA_SETS', 'DataSet', 'find_data_set', 'register']

import_modules(__name__)
