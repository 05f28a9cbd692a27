"""Steps that are processes of their own."""

import pytest

from sift_mm.experiments.processes import is_finished, run_tool


def test_a_step_that_fails_says_where_its_log_is(tmp_path, capsys):
    with pytest.raises(SystemExit, match='step broken failed.*broken.log'):
        run_tool(tmp_path, 'broken', '-c', 'print("Epoch(train) [1]"); 1 / 0')
    caught = capsys.readouterr()
    assert 'broken: Epoch(train) [1]' in caught.out
    assert 'ZeroDivisionError' in caught.err
    assert 'ZeroDivisionError' in (tmp_path / 'broken.log').read_text()


def test_a_second_attempt_keeps_the_log_of_the_first(tmp_path):
    with pytest.raises(SystemExit):
        run_tool(tmp_path, 'twice', '-c', 'print("first"); 1 / 0')
    run_tool(
        tmp_path,
        'twice',
        '-c',
        'import os; print(os.environ["WORD"])',
        WORD='second',
    )
    first, *_, second = (tmp_path / 'twice.log').read_text().splitlines()
    assert (first, second) == ('first', 'second')


def test_a_checkpoint_is_finished_when_it_is_the_last_one_named(tmp_path):
    checkpoint, last = tmp_path / 'epoch_2.pth', tmp_path / 'last_checkpoint'
    checkpoint.write_text('half of it')
    assert not is_finished(checkpoint)
    last.write_text('before/the/folder/moved/epoch_1.pth')
    assert not is_finished(checkpoint)
    last.write_text('before/the/folder/moved/epoch_2.pth')
    assert is_finished(checkpoint)
    checkpoint.unlink()
    assert not is_finished(checkpoint)
