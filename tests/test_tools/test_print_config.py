"""Tests of tools/misc/print_config.py."""

from pathlib import Path

import pytest
from mmengine.config import Config

from sift_mm.cli import print_config

pytestmark = pytest.mark.usefixtures('fresh_process')


def test_prints_and_saves(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / 'base.py').write_text('a = dict(b=1, c=2)')
    (tmp_path / 'cfg.py').write_text("_base_ = 'base.py'\na = dict(b=3)")
    print_config.main(
        ['cfg.py', '--save-path', 'out/all.py', '--cfg-options', 'd=4']
    )
    printed = capsys.readouterr().out
    assert printed.startswith('Config:\na = dict(b=3, c=2)\nd = 4')
    assert Config.fromfile('out/all.py').to_dict() == dict(
        a=dict(b=3, c=2), d=4
    )


def test_unknown_suffix(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        print_config.main(['cfg.py', '--save-path', 'all.txt'])
    assert '--save-path has to end in .py' in capsys.readouterr().err
