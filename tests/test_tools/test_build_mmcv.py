"""The build of mmcv: its header, its cache, and the trial of an op."""

import importlib.util
import subprocess
import zipfile
from pathlib import Path

import pytest

from helpers.runs import ROOT

KEY = 'mmcv-2.3.6_torch-9.9+cu1_cp3'
NAME = 'onedl_mmcv-2.3.6-py3-none-any.whl'


class Build:
    """The tool, with a stand-in for every process that it starts."""

    def __init__(self, tmp_path, monkeypatch):
        path = ROOT / 'tools/build_mmcv.py'
        spec = importlib.util.spec_from_file_location('build_mmcv', path)
        self.tool = tool = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(tool)
        self.cache = tmp_path / 'cache/sift_mm/wheels'
        self.calls, self.version, self.header = [], b'g++ 12', 0
        monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
        for name in ('CUDA_HOME', 'CFLAGS'):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(tool, 'GPU', False)
        monkeypatch.setattr(tool.torch, '__version__', '9.9+cu1')
        monkeypatch.setattr(tool.sys, 'prefix', str(tmp_path))
        monkeypatch.setattr(tool, 'INSTALLED', tmp_path / 'mmcv.txt')
        monkeypatch.setattr(tool.subprocess, 'run', self.run)
        self.monkeypatch = monkeypatch

    def run(self, command, env=None, **_):
        words = [str(word) for word in command]
        done = subprocess.CompletedProcess(words, 0, stdout=self.version)
        if 'c++-header' in words:
            self.calls.append(('header', words))
            done.returncode = self.header
        elif 'wheel' in words:
            self.calls.append(('wheel', words, env))
            folder = next(w for w in words if w.startswith('--wheel-dir='))
            with zipfile.ZipFile(Path(folder[12:], NAME), 'w') as wheel:
                wheel.writestr('mmcv/_ext.so', '')
        elif 'install' in words:
            self.calls.append(('install', words[-1]))
        return done

    def __call__(self, *options):
        """Run the command line; return the names of the steps."""
        self.calls.clear()
        self.monkeypatch.setattr('sys.argv', ['build_mmcv.py', *options])
        self.tool.main()
        return ' '.join(call[0] for call in self.calls)


@pytest.fixture
def build(tmp_path, monkeypatch):
    return Build(tmp_path, monkeypatch)


def test_the_wheel_is_built_once_and_kept(build):
    assert build() == 'header wheel install'
    (folder,) = build.cache.iterdir()
    assert folder.name.startswith(KEY) and folder.name.endswith('_cpu')
    assert [path.name for path in folder.iterdir()] == [NAME]
    assert build.calls[-1][1] == str(folder / NAME)
    assert build() == 'install'
    assert build('--fresh') == 'header wheel install'
    content = (folder / NAME).read_bytes()
    (folder / NAME).write_bytes(content[:50])  # cut short
    assert build() == 'header wheel install'
    build.monkeypatch.setattr(build.tool.torch, '__version__', '9.10')
    assert build() == 'header wheel install'


def test_header_and_build_have_the_same_flags(build):
    build()
    (_, header), (_, wheel, env), _ = build.calls
    path = header[header.index('-o') + 1].removesuffix('.gch')
    flags = build.tool.CFLAGS
    assert env['CFLAGS'] == f'{flags} -include {path} -Winvalid-pch'
    assert '-O3' in flags and set(flags.split()) < set(header)
    assert {'-fPIC', '-std=c++17', '-DTORCH_EXTENSION_NAME=_ext'} < set(header)
    assert env['MMCV_WITH_OPS'] == '1' and env['MAX_JOBS'].isdecimal()
    for flag in ('--no-build-isolation', '--no-cache-dir', '--no-deps'):
        assert flag in wheel


@pytest.mark.parametrize(
    'change', [dict(version=b'clang 19'), dict(header=1), dict(gpu=True)]
)
def test_without_a_header_it_is_built_all_the_same(build, change, capsys):
    if change.pop('gpu', False):
        build.monkeypatch.setattr(build.tool, 'GPU', True)
        build.monkeypatch.setattr(build.tool.shutil, 'which', lambda _: None)
        with pytest.raises(SystemExit, match='no nvcc'):
            build()
        build.monkeypatch.setenv('CUDA_HOME', '/cuda')
    vars(build).update(change)
    assert build().endswith('wheel install')
    assert 'CFLAGS' not in build.calls[-2][2]
    assert ('does not compile' in capsys.readouterr().out) == build.header


def test_the_op_that_is_tried_tells(build):
    build()
    build.tool.check()
    build.monkeypatch.setattr('mmcv._ext.nms', lambda *_: [0, 1])
    with pytest.raises(SystemExit, match='keeps 2 of two'):
        build.tool.check()
    build.monkeypatch.setattr(build.tool.torch, '__version__', '9.10')
    with pytest.raises(SystemExit, match='not the one for this torch'):
        build.tool.check()
