"""Runs of the three libraries, quick."""

from collections.abc import Iterator

import pytest
from quick import quick_runs


@pytest.fixture(scope='module', autouse=True)
def quick() -> Iterator[None]:
    """See :func:`quick_runs`."""
    with quick_runs():
        yield
