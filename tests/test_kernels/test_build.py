"""Compiling, keeping and loading the kernels."""

import ctypes
import os
import random
import re
import resource
import shutil
import subprocess
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from helpers.random_convolutions import check, forget_layouts, random_case
from sift_mm.kernels import build


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    """Use an empty cache and the quickest compilation."""
    monkeypatch.setenv('SIFT_MM_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setenv('SIFT_MM_KERNEL_FLAGS', '-O0')
    monkeypatch.delenv('LD_PRELOAD', raising=False)
    monkeypatch.delenv('CXX', raising=False)


def why(monkeypatch, **environ: str | None) -> str:
    """Return the reason for no kernels under these variables."""
    for name, value in environ.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    found = build._load.__wrapped__()
    assert isinstance(found, str) and '\n' not in found
    return found


def script(path: Path, text: str) -> str:
    path.write_text(f'#!/bin/sh\n{text}')
    path.chmod(0o755)
    return str(path)


@pytest.fixture(scope='module')
def compiled(tmp_path_factory) -> Path:
    """Compile a library that makes a file when loaded, and a harmless one."""
    folder = tmp_path_factory.mktemp('compiled')
    (folder / 'made.c').write_text(
        '#include <stdio.h>\n__attribute__((constructor)) void f(void)'
        f'{{ fclose(fopen("{folder}/ran", "w")); }}'
    )
    (folder / 'harmless.c').write_text('')
    for name in ('made', 'harmless'):
        command = ['cc', '-shared', '-fPIC', f'{name}.c', '-o', f'{name}.so']
        subprocess.run(command, check=True, cwd=folder)
    return folder / 'made.so'


@pytest.fixture
def quick(tmp_path, monkeypatch, compiled):
    """Use a compiler that only copies its output."""
    text = (
        '[ "$1" = --version ] && exit\nwhile [ "$1" != -o ]; do shift; done\n'
        f'cp "${{MADE:-{compiled}}}" "$2"'
    )
    monkeypatch.setenv('CXX', script(tmp_path / 'quick', text))
    ran = compiled.parent / 'ran'
    ran.unlink(missing_ok=True)
    return ran


def test_no_compiler_is_said_in_a_sentence(tmp_path, monkeypatch):
    assert why(monkeypatch, PATH=str(tmp_path)) == (
        'no C++ compiler was found (looked for c++, g++, clang++); install '
        'g++ or set CXX'
    )


@pytest.mark.parametrize(
    'text, expected',
    [
        (
            'echo note >&2; echo x.cpp: error: no >&2; exit 1',
            'the compiler failed: x.cpp: error: ',
        ),
        ('exit 1', 'the compiler failed: no message'),
        (
            '[ $1 = --version ] || { echo killed; exit 9; }',
            'the compiler failed: killed',
        ),
        (
            r"printf 'Fehler: \344\366\n'; exit 1",
            'the compiler failed: Fehler',
        ),
        ('sleep 60', 'has not ended in 0.2 seconds'),
        ('sleep 60 & exit 0', 'has not ended in 0.2 seconds'),
        ('exit 0', 'the compiler failed: it made no library'),
    ],
)
def test_a_compiler_that_fails(tmp_path, monkeypatch, text, expected):
    monkeypatch.setattr(build, 'VERSION_LIMIT', 0.2)
    monkeypatch.setattr(build, 'COMPILE_LIMIT', 0.2)
    found = why(monkeypatch, CXX=script(tmp_path / 'cxx', text))
    assert re.search(expected, found)
    assert not list(tmp_path.glob('cache/*'))


@pytest.mark.parametrize(
    'name, value, expected',
    [
        ('CXX', "g++ '", 'CXX=.* cannot be read: No closing quotation'),
        ('CXX', '/', "CXX names '/', which is no program"),
        ('CXX', 'no-such-compiler -v', "CXX names 'no-such-compiler'"),
        ('CXX', '{here}/text', 'CXX names .*text'),
        ('CXX', '{here}/bytes', 'cannot be run: .*Exec format'),
        ('CXX', '\udcff', 'CXX names'),
        ('SIFT_MM_KERNEL_FLAGS', '"', 'SIFT_MM_KERNEL_FLAGS=.*cannot be read'),
        ('SIFT_MM_CACHE', '{here}/text/in', 'Not a directory.; set SIFT_MM'),
        ('SIFT_MM_CACHE', '/proc/sift_mm', 'could not be kept in /proc'),
        ('SIFT_MM_CACHE', '~no-such-user/a', 'no home.*set SIFT_MM_CACHE'),
        ('SIFT_MM_CACHE', 'x' * 300, 'name too long.*set SIFT_MM_CACHE'),
        ('MADE', '{here}/text', 'could not be loaded .*set SIFT_MM_CACHE'),
    ],
)
def test_odd_variables(tmp_path, monkeypatch, quick, name, value, expected):
    (tmp_path / 'text').write_text('no program')
    (tmp_path / 'bytes').write_bytes(b'\0\0\0\0')
    (tmp_path / 'bytes').chmod(0o755)
    found = why(monkeypatch, **{name: value.format(here=tmp_path)})
    assert re.search(expected, found)
    found.encode()


def test_no_home(monkeypatch, quick):
    def nobody(_):
        raise KeyError('uid not found')

    monkeypatch.setattr('pwd.getpwuid', nobody)
    names = dict.fromkeys(['HOME', 'SIFT_MM_CACHE', 'XDG_CACHE_HOME'])
    assert 'no home folder' in why(monkeypatch, **names)


@pytest.mark.parametrize(
    'variables, expected',
    [
        ({'CXX': ' '}, 'cache'),
        ({'SIFT_MM_CACHE': '~/own'}, 'own'),
        ({'SIFT_MM_CACHE': 'here'}, 'here'),
        ({'SIFT_MM_CACHE': '', 'XDG_CACHE_HOME': '{here}'}, 'sift_mm'),
        ({'SIFT_MM_CACHE': '', 'XDG_CACHE_HOME': 'odd'}, '.cache/sift_mm'),
        ({'SIFT_MM_CACHE': '', 'XDG_CACHE_HOME': ''}, '.cache/sift_mm'),
    ],
)
def test_where_kernels_are_kept(tmp_path, monkeypatch, variables, expected):
    monkeypatch.setenv('HOME', str(tmp_path))
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(here=tmp_path))
    assert build.cache_folder() == tmp_path / expected
    assert build._compiler()


def test_a_full_disk(tmp_path, monkeypatch, quick):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    made = tmp_path / 'made'
    made.write_bytes(bytes(1000))
    for size in (1000, 500):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            found = why(monkeypatch, MADE=str(made))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert re.search('could not be kept|the compiler failed', found)
    assert not list((tmp_path / 'cache').iterdir())


def give_away(path: Path, monkeypatch) -> None:
    """Make a file another user's, or this process another user's."""
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)
    else:
        monkeypatch.setattr(os, 'geteuid', lambda: 12345)


# What others could do to the cache: to it, or to a folder above.
OPEN = {
    'written by all': lambda path, _: path.chmod(0o777),
    'written by a group': lambda path, _: path.chmod(0o770),
    'sticky, but of the cache itself': lambda path, _: path.chmod(0o1777),
    "another's": give_away,
}


@pytest.mark.parametrize('name', OPEN)
@pytest.mark.parametrize('place', ['cache', '.', 'link'])
def test_no_file_of_others_is_loaded(
    tmp_path, monkeypatch, quick, compiled, name, place
):
    above = tmp_path / 'above'
    above.mkdir()
    monkeypatch.setenv('SIFT_MM_CACHE', str(above / 'cache'))
    planted = build.build()  # What another could plant: whole, by its digest.
    monkeypatch.setenv('MADE', str(compiled.with_name('harmless.so')))
    if place == 'link':
        (tmp_path / 'link').symlink_to(above / 'cache')
        monkeypatch.setenv('SIFT_MM_CACHE', str(tmp_path / 'link'))
    OPEN[name](above if place == '.' else above / 'cache', monkeypatch)
    if place == '.' and name.startswith('sticky'):
        # Like /tmp: entries are their owners' there.
        assert build.build() == planted
        return
    with pytest.warns(UserWarning, match='not kept in .*SIFT_MM_CACHE'):
        loaded = build._load.__wrapped__()
    # Without root, all is of another user in that test, and nothing loaded.
    assert isinstance(loaded, str if os.geteuid() == 12345 else ctypes.CDLL)
    assert not quick.exists()
    with pytest.raises(build.FolderNotTrusted):
        build.build()


@pytest.mark.parametrize('change', [OPEN['written by all'], give_away])
def test_a_kept_file_of_others_is_built_anew(
    tmp_path, monkeypatch, quick, change
):
    library = build.build()
    with monkeypatch.context() as patch:
        change(library, patch)
        assert build._open_whole(library) is None
    library.chmod(0o666)
    assert build.build() == library
    assert library.stat().st_mode & 0o022 == 0
    library.unlink()
    library.symlink_to(tmp_path / 'elsewhere.so')
    assert build.build() == library and not library.is_symlink()


def test_where_nothing_can_be_trusted_layers_run_dense(
    tmp_path, monkeypatch, quick
):
    place = tmp_path / 'open'
    place.mkdir()
    place.chmod(0o777)
    monkeypatch.setattr(tempfile, 'tempdir', str(place))
    with pytest.warns(UserWarning, match='not kept in'):
        found = why(monkeypatch, SIFT_MM_CACHE=str(place / 'cache'))
    assert 'can be written by others (mode 777)' in found
    assert [p.name for p in place.iterdir()] == ['cache']


def test_what_was_checked_is_loaded(tmp_path, monkeypatch, quick, compiled):
    # Another file takes the name between check and loading.
    monkeypatch.setenv('MADE', str(compiled.with_name('harmless.so')))
    library = build.build()
    whole = build._open_whole

    def exchanged(path):
        found = whole(path)
        shutil.copy(compiled, tmp_path / 'other')
        os.replace(tmp_path / 'other', path)
        return found

    monkeypatch.setattr(build, '_open_whole', exchanged)
    build._load_from(library)
    assert not quick.exists()
    build._load_from(build.build())
    assert not quick.exists()


def test_compilations_that_were_killed_are_removed(tmp_path, quick):
    old, new = (tmp_path / 'cache' / f'building-{i}' for i in range(2))
    for folder in (old, new):
        (folder / 'a').mkdir(parents=True)
    (tmp_path / 'cache').chmod(0o700)
    os.utime(old, (0, 0))
    library = build.build()
    assert {*(tmp_path / 'cache').iterdir()} == {new, library}


def test_two_processes_at_once_then_one_that_is_cut(tmp_path, quick):
    with ProcessPoolExecutor(2, get_context('fork')) as pool:
        library, other = pool.map(build.build, [None, None])
    assert library == other
    assert list((tmp_path / 'cache').iterdir()) == [library]

    whole = library.read_bytes()
    assert build.build() == library  # without a compiler's time
    for damaged in (whole[: len(whole) // 2], whole[:-1], b''):
        library.write_bytes(damaged)
        assert build._open_whole(library) is None
    assert build.build() == library
    assert library.read_bytes() == whole
    assert list((tmp_path / 'cache').iterdir()) == [library]


@pytest.mark.skipif(
    build.instruction_set() == 'AVX512', reason='other tests compile these'
)
def test_avx512_sources_compile(monkeypatch):
    monkeypatch.setattr(build, 'instruction_set', lambda: 'AVX512')
    assert build.build().name.startswith('kernels-avx512-')


# What no CPU at hand has to run is right all the same: 16 lanes, and code
# that knows no vectors.
@pytest.mark.parametrize('flag, kind', [(' -DSIFT_LANES=16', ''), ('', 'any')])
def test_other_lanes_and_the_portable_code(monkeypatch, flag, kind):
    monkeypatch.setenv('SIFT_MM_KERNEL_FLAGS', f'-O0{flag}')
    if kind:
        monkeypatch.setattr(build, 'instruction_set', lambda: kind)
    library = build._load.__wrapped__()
    monkeypatch.setattr(build, 'library', lambda: library)
    seed = random.randrange(10**6)
    print(f'seed {seed}')
    source = random.Random(seed)
    forget_layouts()
    for _ in range(100):
        check(random_case(source))
    forget_layouts()


def test_a_pipe_in_the_place_of_the_library_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'kernels.so')
    assert build._open_whole(tmp_path / 'kernels.so') is None
