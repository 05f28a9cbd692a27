"""A data set takes its place when it is whole, and nothing else is lost."""

import json
import shutil

import pytest
from datafiles import names
from filelock import FileLock

from sift_mm.datasets.building import SCRATCH, DataError, build, scratch


def make(root, content='new', layout=1):
    """Builds a set of one letter."""

    def write(folder):
        (folder / 'train').mkdir()
        (folder / 'train' / 'a.txt').write_text(content)

    build(root, {'name': 'letters', 'layout': layout}, write)


def letter(root):
    return (root / 'train' / 'a.txt').read_text()


@pytest.mark.parametrize('beside', [False, True])
def test_scratch_is_empty_at_first_and_gone_in_the_end(tmp_path, beside):
    root = tmp_path / 'set'
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), scratch(root, beside) as work:
            assert names(work) == []
            (work / 'half').write_text('')
            left = shutil.copytree(work.parent, tmp_path / 'killed')
            raise KeyboardInterrupt
        assert not work.parent.exists()
        shutil.move(left, work.parent)  # as a killed process leaves it


def test_two_processes_do_not_make_the_same_set(tmp_path):
    root = tmp_path / 'set'
    with (
        scratch(root) as work,
        pytest.raises(DataError, match='Another process prepares'),
        scratch(root),
    ):
        pytest.fail('got in')
    assert not work.exists()
    (tmp_path / f'{SCRATCH}-set').mkdir()
    with (
        FileLock(tmp_path / f'{SCRATCH}-set' / 'lock'),
        pytest.raises(DataError, match='Another process prepares'),
    ):
        make(root)
    make(tmp_path / 'other')


@pytest.mark.parametrize(
    'damage',
    [
        lambda root: (root / 'train' / 'a.txt').write_text('half a letter'),
        lambda root: (root / 'train' / 'a.txt').unlink(),
        lambda root: shutil.rmtree(root / 'train'),
    ],
)
def test_a_set_is_built_once_and_anew_if_it_is_damaged(tmp_path, damage):
    root = tmp_path / 'data' / 'set'
    make(root, 'old')
    make(root, 'not built, as it is whole')
    assert letter(root) == 'old'
    damage(root)
    make(root, 'new')
    assert letter(root) == 'new'
    make(root, 'newer', layout=2)
    assert letter(root) == 'newer'
    assert names(root.parent) == ['set']


def test_an_error_keeps_the_old_set(tmp_path):
    root = tmp_path / 'set'
    make(root, 'old')

    def fails(folder):
        (folder / 'half').write_text('')
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(root, {'name': 'letters', 'layout': 2}, fails)
    assert letter(root) == 'old'
    assert names(tmp_path) == ['set']
    make(root, 'not built, as it is whole')
    assert letter(root) == 'old'


def test_what_others_wrote_is_not_replaced(tmp_path):
    root = tmp_path / 'set'
    make(root, 'old')
    (tmp_path / 'far').mkdir()
    for name, add in {
        'notes.txt': lambda path: path.write_text('dear diary'),
        'train/b.txt': lambda path: path.write_text('b'),
        'far': lambda path: path.symlink_to(tmp_path / 'far'),
    }.items():
        add(root / name)
        make(root)  # It is whole.
        with pytest.raises(DataError, match=f'{root / name} is not known'):
            make(root, layout=2)
        (root / name).unlink()  # is still there
    assert letter(root) == 'old'

    def meanwhile(folder):
        (root / 'notes.txt').write_text('dear diary')

    with pytest.raises(DataError, match='notes.txt is not known'):
        build(root, {'name': 'letters', 'layout': 2}, meanwhile)
    assert letter(root) == 'old'


@pytest.mark.parametrize(
    'manifest',
    [
        None,
        'no JSON',
        '[]',
        json.dumps({'name': 'letters', 'layout': 0}),
        json.dumps({'other': 1, 'files': {'notes.txt': 10}}),
    ],
)
def test_a_folder_of_somebody_else_is_left_alone(tmp_path, manifest):
    root = tmp_path / 'mine'
    root.mkdir()
    (root / 'notes.txt').write_text('dear diary')
    if manifest is not None:
        (root / 'manifest.json').write_text(manifest)
    with pytest.raises(DataError, match='move it away or name another'):
        make(root)
    assert (root / 'notes.txt').read_text() == 'dear diary'
    with pytest.raises(DataError, match='notes.txt is not known'):
        make(root / 'notes.txt')
    assert (root / 'notes.txt').read_text() == 'dear diary'


@pytest.mark.parametrize(
    'prepared',
    [
        lambda disk: None,
        lambda disk: disk.mkdir(),
        lambda disk: make(disk, 'old', layout=0),
    ],
    ids=['nothing', 'empty', 'older'],
)
def test_a_link_to_another_disk_stays_one(tmp_path, prepared):
    disk, root = tmp_path / 'large' / 'set', tmp_path / 'set'
    disk.parent.mkdir()
    prepared(disk)
    root.symlink_to(disk)
    make(root)
    assert root.is_symlink()
    assert letter(disk) == 'new'
    assert names(disk.parent) == ['set']
    assert names(tmp_path) == ['large', 'set']
