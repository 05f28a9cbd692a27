"""Steps that are processes of their own."""

import pytest

from tools.steps import run_tool


def test_a_step_that_fails_says_where_its_log_is(tmp_path, capsys):
    with pytest.raises(SystemExit, match='step broken failed.*broken.log'):
        run_tool(tmp_path, 'broken', '-c',
                 'print("Epoch(train) [1]"); 1 / 0')
    caught = capsys.readouterr()
    assert 'broken: Epoch(train) [1]' in caught.out
    assert 'ZeroDivisionError' in caught.err
    assert 'ZeroDivisionError' in (tmp_path / 'broken.log').read_text()
