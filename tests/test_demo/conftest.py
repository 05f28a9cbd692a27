"""What tests of the demos share."""

import pytest
from standins import use_standins


@pytest.fixture
def standins(tmp_path, monkeypatch, fresh_process):
    """Tools that do next to nothing."""
    use_standins(monkeypatch, tmp_path)
    return tmp_path
