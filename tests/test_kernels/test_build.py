"""Compiling, keeping and loading the kernels."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from minirun import ROOT

from sift_mm.kernels import build

PRINT = 'from sift_mm.kernels import build; print(build.build())'
WHY = 'from sift_mm.kernels import why_unavailable; print(why_unavailable())'


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    """An empty cache, and the quickest of compilations."""
    monkeypatch.setenv('SIFT_MM_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('SIFT_MM_KERNEL_FLAGS', '-O0')
    monkeypatch.delenv('LD_PRELOAD', raising=False)
    monkeypatch.delenv('CXX', raising=False)


def start(*arguments: object, **environ: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, 'PYTHONPATH': str(ROOT), **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    output = process.communicate()[0]
    assert process.returncode == 0, output
    return output.strip().splitlines()[-1]


def test_no_compiler_is_said_in_a_sentence(tmp_path):
    process = start('-c', WHY, PATH=str(tmp_path))
    assert finish(process) == (
        'no C++ compiler was found (looked for c++, g++, clang++); install '
        'g++ or set CXX'
    )


@pytest.mark.parametrize(
    'text, expected',
    [
        (
            '#!/bin/sh\necho note >&2; echo x.cpp: error: no >&2; exit 1',
            'the compiler failed: x.cpp: error: ',
        ),
        ('#!/bin/sh\nexit 1', 'the compiler failed: no message'),
        (
            '#!/bin/sh\n[ $1 = --version ] || { echo killed; exit 9; }',
            'the compiler failed: killed',
        ),
        ('\0\0\0\0', 'cannot be run'),
    ],
)
def test_a_compiler_that_fails(tmp_path, monkeypatch, text, expected):
    compiler = tmp_path / 'cxx'
    compiler.write_text(text)
    compiler.chmod(0o755)
    monkeypatch.setenv('CXX', str(compiler))
    with pytest.raises(build.KernelsUnavailable, match=expected):
        build.build()
    assert not list(tmp_path.glob('cache/*'))


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('SIFT_MM_CACHE', str(tmp_path / 'file' / 'cache'))
    words = 'Not a directory.; set SIFT_MM_CACHE'
    with pytest.raises(build.KernelsUnavailable, match=words):
        build.build()


def test_two_processes_at_once_then_one_that_is_cut(tmp_path):
    both = [start('-c', PRINT) for _ in range(2)]
    first, second = map(finish, both)
    assert first == second
    library = Path(first)
    assert list((tmp_path / 'cache').iterdir()) == [library]

    whole = library.read_bytes()
    assert build.build() == library  # without a compiler's time
    for damaged in (whole[: len(whole) // 2], whole[:-1], b''):
        library.write_bytes(damaged)
        assert not build._whole(library)
    assert build.build() == library
    assert build._whole(library)
    assert list((tmp_path / 'cache').iterdir()) == [library]


def test_avx512_sources_compile(monkeypatch):
    monkeypatch.setattr(build, 'instruction_set', lambda: 'AVX512')
    assert build.build().name.startswith('kernels-avx512-')


# What no CPU at hand has to run is right all the same: 16 lanes, and code
# that knows no vectors.
@pytest.mark.parametrize(
    'flags, capability', [('-O1 -DSIFT_LANES=16', ''), ('-O1', 'default')]
)
def test_other_lanes_and_the_portable_code(flags, capability):
    environ = {'ATEN_CPU_CAPABILITY': capability} if capability else {}
    process = start(
        *('-m', 'pytest', '-n', '0', '-q', '-p', 'no:cacheprovider'),
        *(ROOT / 'tests/test_kernels/test_exact.py', '-k', '[0]'),
        SIFT_MM_KERNEL_FLAGS=flags,
        **environ,
    )
    assert finish(process).startswith('1 passed')


def test_one_thread_pool_with_torch():
    process = start(
        '-c',
        'import torch\n'
        'from sift_mm.kernels import why_unavailable\n'
        'assert why_unavailable() is None\n'
        'names = open("/proc/self/maps").read().splitlines()\n'
        'files = {line.split()[-1].split("/")[-1] for line in names}\n'
        'print(sum(f.startswith(("libgomp", "libomp", "libiomp")) '
        'for f in files))',
    )
    assert finish(process) == '1'
