"""Every test of the tools may call a ``main``."""

import pytest


@pytest.fixture(autouse=True)
def fresh(fresh_process: None) -> None:
    """Each as if in a process of its own."""
