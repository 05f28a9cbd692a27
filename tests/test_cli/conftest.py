"""Fixtures of the command lines."""

import json
from pathlib import Path

import pytest

from helpers.runs import write_config
from sift_mm.cli import get_flops

NOWHERE = Path('nowhere')


@pytest.fixture
def report(capsys):
    """Run the tool and read its JSON from the standard output."""

    def run(config, *options):
        get_flops.main([config, *options, '--json'])
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def dense(tmp_path):
    """Write the small dense config of a library with more code."""

    def write(scope, more=''):
        config = Path(write_config(tmp_path, scope, NOWHERE))
        config.write_text(config.read_text() + more)
        return str(config)

    return write
