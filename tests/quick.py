"""What runs spend half of their time on, and no test of runs looks at."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from unittest import mock


@contextmanager
def quick_runs() -> Iterator[None]:
    """Leaves out what reading configs and data spends its time on.

    A config is the same Python without layout. The index of a library's
    configs, a file for each of some hundred folders, would be read for every
    base.
    """
    from mmengine.config import utils

    with (
        mock.patch(
            'yapf.yapflib.yapf_api.FormatCode', lambda text, **_: (text, 0)
        ),
        mock.patch.object(utils, 'load', cache(utils.load)),
        # Each dataset of four images would collect garbage.
        mock.patch('mmengine.dataset.base_dataset.gc'),
    ):
        yield
