"""Archives that lie, downloads that hang, disks that are full."""

import socket
import threading
import zipfile

import pytest
from datafiles import names
from forks import run_forked
from minirun import ROOT

from sift_mm.datasets import files


def test_the_script_says_what_is_wrong_and_fails(tmp_path):
    root = tmp_path / 'mine'
    done = run_forked(
        ROOT / 'tools/prepare_data.py', 'imagenet', '--root', root
    )
    assert done.returncode == 2
    assert str(root) in done.stdout
    assert 'Traceback' not in done.stdout


def test_a_download_that_does_not_answer_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(files, 'TIMEOUT', 0.1)
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    with socket.create_server(('127.0.0.1', 0)) as silent:
        # Lets the test fail, not hang, where the time limit does not work.
        hang_up = threading.Timer(5, silent.shutdown, [socket.SHUT_RDWR])
        hang_up.start()
        url = f'http://127.0.0.1:{silent.getsockname()[1]}/file'
        with pytest.raises(files.DataError, match='timed out'):
            files.fetch_url(url, tmp_path)
        hang_up.cancel()
    assert socket.getdefaulttimeout() is None


def test_a_zip_cannot_write_elsewhere(tmp_path):
    root = tmp_path / 'a' / 'root'
    root.mkdir(parents=True)
    with zipfile.ZipFile(root / 'x.zip', 'w') as archive:
        archive.writestr('part/../../../evil', 'x')
        archive.writestr('part/good', 'x')
        archive.writestr('/part/evil', 'x')
        archive.writestr('other', 'x')
    files.unpack_zips(root, {'part': 'x.zip'})
    there = {p.name for p in tmp_path.rglob('*') if p.is_file()}
    assert there == {'x.zip', 'good', 'evil'}
    assert (root / 'part' / 'evil').is_file()
    assert names(root) == ['part', 'x.zip']
