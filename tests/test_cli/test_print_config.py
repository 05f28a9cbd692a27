"""Tests of tools/misc/print_config.py."""

from pathlib import Path

import pytest
from mmengine.config import Config

from sift_mm.cli import print_config


def test_prints_and_saves(tmp_path, capsys):
    (tmp_path / 'base.py').write_text('a = dict(b=1, c=2)')
    (tmp_path / 'cfg.py').write_text("_base_ = 'base.py'\na = dict(b=3)")
    print_config.main(
        ['cfg.py', '--save-path', 'out/all.py', '--cfg-options', 'd=4']
    )
    printed = capsys.readouterr().out
    values = {}
    exec(printed.removeprefix('Config:\n').partition('Saved')[0], values)
    assert values['a'] == dict(b=3, c=2) and values['d'] == 4
    assert Config.fromfile('out/all.py').to_dict() == dict(
        a=dict(b=3, c=2), d=4
    )


def test_unknown_suffix(capsys):
    with pytest.raises(SystemExit):
        print_config.main(['cfg.py', '--save-path', 'all.txt'])
    assert '--save-path has to end in .py' in capsys.readouterr().err


@pytest.mark.parametrize(
    'words, said',
    [
        (['mmfoo::a/b.py'], 'There is no config file mmfoo::a/b.py'),
        (['notes.md'], r'notes\.md is no config: .*\.py'),
        (['cfg.py', '--family', 'wide'], 'Foo .*registry'),
        (['cfg.py', '--save-path', 'notes.md/a/b.py'], "irectory: '/.*notes"),
    ],
)
def test_mistakes_end_with_a_sentence(words, said):
    Path('notes.md').write_text('# Notes')
    Path('cfg.py').write_text(
        "default_scope = 'mmpretrain'\n"
        "model = dict(type='ImageClassifier', head=dict(type='Foo'), "
        "backbone=dict(type='ResNet', depth=18, sparsity=0.5))\n"
    )
    with pytest.raises(SystemExit, match=said):
        print_config.main(words)


@pytest.mark.parametrize('option', ['--cfg-options', '--hook'])
def test_settings_are_pairs(option, capsys):
    with pytest.raises(SystemExit):
        print_config.main(['cfg.py', option, 'interval'])
    assert f'{option} takes KEY=VALUE, not interval' in capsys.readouterr().err
