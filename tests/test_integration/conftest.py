"""What runs spend half of their time on, and no test here looks at."""

from collections.abc import Iterator
from functools import cache
from unittest import mock

import pytest


@pytest.fixture(scope='module', autouse=True)
def quick_configs() -> Iterator[None]:
    """Leaves the layout of config texts, and reads the libraries' index once.

    A config is the same Python without layout; the index of configs is a file
    of some hundred entries.
    """
    from mmengine.config import utils

    index = cache(utils._get_cfg_metainfo)
    with (
        mock.patch(
            'yapf.yapflib.yapf_api.FormatCode', lambda text, **_: (text, 0)
        ),
        mock.patch.object(utils, '_get_cfg_metainfo', index),
    ):
        yield
