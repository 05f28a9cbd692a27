"""Fashion-MNIST: from each of its sources to files of the right content."""

import gzip
import hashlib

import numpy as np
import pytest

from demo import fashion_mnist
from helpers.archives import idx

SHAPES = ((6, 28, 28), 6, (2, 28, 28), 2)
CONTENTS = {
    name: idx(np.zeros(shape, np.uint8))
    for name, shape in zip(fashion_mnist.MD5, SHAPES, strict=True)
}
PACKED = {f'{n}.gz': gzip.compress(c) for n, c in CONTENTS.items()}
LAST = 't10k-labels-idx1-ubyte'


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """Return the folders of data set, server and package, all empty."""
    digests = {n: hashlib.md5(c).hexdigest() for n, c in CONTENTS.items()}
    monkeypatch.setattr(fashion_mnist, 'MD5', digests)
    found = {n: tmp_path / n for n in ('root', 'server', 'package')}
    programs = tmp_path / 'bin'
    for folder in (*found.values(), programs):
        folder.mkdir()
    monkeypatch.setattr(fashion_mnist, 'SERVER', found['server'].as_uri())
    target = '"$3/usr/share/datasets/fashion-mnist"'
    for name, lines in {
        'apt-get': f'test "$4" = {fashion_mnist.PACKAGE}; echo > small.deb',
        'dpkg-deb': f'mkdir -p {target}; cp {found["package"]}/* {target}',
        'sh': 'exec /bin/sh "$@"',
    }.items():
        path = '/usr/bin:/bin' if name != 'sh' else programs
        (programs / name).write_text(f'#!/bin/sh -e\nPATH={path}\n{lines}\n')
        (programs / name).chmod(0o755)
    monkeypatch.setenv('PATH', str(programs))
    return found


@pytest.mark.parametrize('source', ['root', 'server', 'package'])
def test_it_is_taken_from_each_source_once(sources, source, capsys):
    for name, content in PACKED.items():
        (sources[source] / name).write_bytes(content)
    root = sources['root']
    fashion_mnist.main(['--root', str(root)])
    assert '60,000 + 10,000' in capsys.readouterr().out
    for name, content in CONTENTS.items():
        assert (root / name).read_bytes() == content
        (sources[source] / f'{name}.gz').unlink()
    written = (root / LAST).stat().st_mtime_ns
    fashion_mnist.prepare(root)
    assert (root / LAST).stat().st_mtime_ns == written
    assert {p.name for p in root.iterdir()} == set(CONTENTS)


@pytest.mark.parametrize('damage', ['absent', 'cut', 'cut more', 'another'])
def test_a_wrong_archive_ends_in_a_sentence(sources, damage, capsys):
    root = sources['root']
    for name, content in PACKED.items():
        (root / name).write_bytes(content)
    path = root / f'{LAST}.gz'
    if damage == 'absent':
        path.unlink()
    elif damage == 'another':
        path.write_bytes(PACKED['train-labels-idx1-ubyte.gz'])
    else:
        path.write_bytes(path.read_bytes()[: -1 if damage == 'cut' else -12])
    with pytest.raises(SystemExit):
        fashion_mnist.main(['--root', str(root)])
    said = capsys.readouterr().err
    assert f'get {LAST}.gz from {fashion_mnist.PAGE}, put them into' in said
    assert said.count('\n') == 1 and not (root / LAST).exists()
    path.write_bytes(PACKED[path.name])
    (root / 't10k-images-idx3-ubyte').write_bytes(b'half of it')
    fashion_mnist.prepare(root)
