"""Table of data sets, for costs, schedules, messages and metafiles.

A new file in this folder that calls :func:`register` adds a data set.
"""

from sift_mm.data.table import DATA_SETS, DataSet, find_data_set, register
from sift_mm.discovery import import_modules

__all__ = ['DATA_SETS', 'DataSet', 'find_data_set', 'register']

import_modules(__name__)
