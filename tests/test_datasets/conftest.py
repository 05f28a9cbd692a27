"""The command, and a server for what it downloads."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sift_mm.cli import prepare_data


@pytest.fixture
def prepare(capsys):
    """Calls the tool, which succeeds; returns what it said."""

    def call(name, root, *options):
        prepare_data.main([name, '--root', str(root), *options])
        return capsys.readouterr().out

    return call


@pytest.fixture
def refuse(prepare, capsys):
    """Calls the tool, which fails; returns what is wrong."""

    def call(*args):
        with pytest.raises(SystemExit):
            prepare(*args)
        return capsys.readouterr().err

    return call


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder and the address at which its files can be fetched."""
    folder = tmp_path / 'served'
    folder.mkdir()
    handler = partial(QuietHandler, directory=str(folder))
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield folder, f'http://127.0.0.1:{http.server_port}'
        http.shutdown()
        thread.join()
