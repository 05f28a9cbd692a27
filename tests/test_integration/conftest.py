"""Sparse configs of the three libraries."""

from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.sparse_runs import sparse_config


@pytest.fixture
def make_config(data: dict[str, Path], tmp_path: Path) -> Callable[..., str]:
    """Return a function that writes one; see :func:`sparse_config`."""

    def make(scope: str, more: str = '', family: str = 'wide') -> str:
        return sparse_config(tmp_path / 'c', scope, data[scope], more, family)

    return make
