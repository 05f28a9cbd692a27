"""The set-up's logic: keys, cache, stamp, messages. Nothing is installed."""

import json
import sys
import zipfile
from pathlib import Path

import pytest

from tools import setup_env as tool

FOUND = tool.Found(
    python='cp311', torch='2.12.1+cu130', device='cpu', mmcv='2.3.6'
)
GPU = FOUND._replace(device='cuda13.0-sm9.0')


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    monkeypatch.setattr(tool.platform, 'machine', lambda: 'x86_64')


def wheel_at(folder, members=('mmcv/_ext.cpython-311.so', 'mmcv/ops/nms.py')):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / 'onedl_mmcv-2.3.6-cp311-cp311-linux_x86_64.whl'
    with zipfile.ZipFile(path, 'w') as archive:
        for name in members:
            archive.writestr(name, name * 100)
    return path


@pytest.fixture
def checkout(tmp_path):
    root = tmp_path / 'checkout'
    root.mkdir()
    (root / 'requirements.txt').write_text(
        'setuptools==80.9.0\ntorch==2.12.1\ntorchvision==0.27.1\n'
        'onedl-mmcv==2.3.6\nopencv-python-headless==4.12.0.88; '
        "python_version < '3.14'\n"
    )
    (root / 'requirements-dev.txt').write_text('pytest\n')
    (root / 'pyproject.toml').write_text('[project]\n')
    return root


# The key and the cache


def test_the_key_names_all_that_the_ops_depend_on():
    assert tool.wheel_key('2.3.6', FOUND) == (
        'mmcv-2.3.6_torch-2.12.1+cu130_cp311_x86_64_cpu'
    )


@pytest.mark.parametrize(
    'other',
    [
        FOUND._replace(torch='2.12.1+cpu'),
        FOUND._replace(torch='2.12.0+cu130'),
        FOUND._replace(python='cp312'),
        GPU,
        GPU._replace(device='cuda13.0-sm8.0'),
    ],
)
def test_another_torch_python_or_device_has_another_key(other):
    assert tool.wheel_key('2.3.6', other) != tool.wheel_key('2.3.6', FOUND)
    assert tool.wheel_key('2.3.5', other) != tool.wheel_key('2.3.6', other)


def test_the_key_is_a_plain_folder_name():
    found = FOUND._replace(device='cuda13.0-sm8.0;9.0+PTX /x')
    assert tool.wheel_key('2.3.6', found).endswith('_cuda13.0-sm8.0-9.0+PTX-x')


def test_cuda_ops_serve_where_the_device_is_hidden_but_not_reversed():
    cpu, gpu = (tool.wheel_key('2.3.6', f) for f in (FOUND, GPU))
    other_torch = tool.wheel_key('2.3.6', GPU._replace(torch='2.13.0'))
    assert tool.serves(cpu, cpu)
    assert tool.serves(gpu, cpu)
    assert not tool.serves(cpu, gpu)
    assert not tool.serves(other_torch, cpu)
    assert not tool.serves('', cpu)


def test_the_cache_is_the_users(monkeypatch, tmp_path):
    named = {'XDG_CACHE_HOME': str(tmp_path)}
    assert tool.cache_folder(named) == tmp_path / 'sift_mm' / 'wheels'
    monkeypatch.setenv('HOME', str(tmp_path))
    for environ in ({}, {'XDG_CACHE_HOME': ''}, {'XDG_CACHE_HOME': 'rel'}):
        assert tool.cache_folder(environ) == (
            tmp_path / '.cache' / 'sift_mm' / 'wheels'
        )


def test_a_whole_wheel_with_ops_is_usable(tmp_path):
    assert tool.usable_wheel(tmp_path / 'absent') is None
    path = wheel_at(tmp_path)
    assert tool.usable_wheel(tmp_path) == path


def test_a_wheel_without_the_compiled_ops_is_not(tmp_path):
    wheel_at(tmp_path, members=('mmcv/ops/nms.py',))
    assert tool.usable_wheel(tmp_path) is None


@pytest.mark.parametrize(
    'damage',
    [
        lambda data: data[: len(data) // 2],  # cut short
        lambda data: b'',
        lambda data: data.replace(b'.sommcv', b'.xxmmcv'),  # some bits changed
    ],
)
def test_a_broken_wheel_is_not(tmp_path, damage):
    path = wheel_at(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    assert tool.usable_wheel(tmp_path) is None


def test_keep_moves_the_wheel_in_and_replaces_a_broken_one(tmp_path):
    built = wheel_at(tmp_path / 'build')
    folder = tmp_path / 'cache' / 'key'
    folder.mkdir(parents=True)
    (folder / built.name).write_bytes(b'broken')
    target = tool.keep(built, folder)
    assert tool.usable_wheel(folder) == target
    assert [p.name for p in folder.iterdir()] == [built.name]


def test_an_interrupted_keep_leaves_nothing_to_pick_up(tmp_path, monkeypatch):
    def half(source, target):
        Path(target).write_bytes(Path(source).read_bytes()[:50])
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(tool.shutil, 'copyfile', half)
    built = wheel_at(tmp_path / 'build')
    with pytest.raises(tool.SetupError, match='No space left.*XDG_CACHE_HOME'):
        tool.keep(built, tmp_path / 'key')
    assert list((tmp_path / 'key').iterdir()) == []


# The stamp


def stamp_of(root, found):
    return {
        'inputs': tool.inputs_hash(root, found),
        'mmcv': tool.wheel_key('2.3.6', found),
    }


def test_what_was_set_up_is_ready(checkout):
    assert tool.is_ready(checkout, FOUND, stamp_of(checkout, FOUND))


@pytest.mark.parametrize(
    'now',
    [
        FOUND._replace(error='ImportError: undefined symbol'),
        FOUND._replace(torch='2.13.0+cu130'),
        FOUND._replace(mmcv='2.3.5'),
        FOUND._replace(python='cp312'),
        GPU,
    ],
)
def test_what_has_changed_since_is_not(checkout, now):
    assert not tool.is_ready(checkout, now, stamp_of(checkout, FOUND))


@pytest.mark.parametrize(
    'name', ['requirements.txt', 'requirements-dev.txt', 'pyproject.toml']
)
def test_edited_requirements_are_noticed(checkout, name):
    stamp = stamp_of(checkout, FOUND)
    with (checkout / name).open('a') as file:
        file.write('# edited\n')
    assert not tool.is_ready(checkout, FOUND, stamp)


def test_a_moved_checkout_is_noticed(checkout):
    stamp = stamp_of(checkout, FOUND)
    moved = checkout.rename(checkout.with_name('moved'))
    assert not tool.is_ready(moved, FOUND, stamp)


def test_the_stamp_comes_back(tmp_path):
    path = tmp_path / 'setup.json'
    assert tool.read_stamp(path) == {}
    tool.write_stamp(path, {'inputs': 'a', 'mmcv': 'b'})
    assert tool.read_stamp(path) == {'inputs': 'a', 'mmcv': 'b'}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('content', ['', '{"inputs"', '[]'])
def test_a_broken_stamp_is_none(tmp_path, content):
    path = tmp_path / 'setup.json'
    path.write_text(content)
    assert tool.read_stamp(path) == {}


def test_pinned():
    text = '# torch==1\ntorchvision==0.2\ntorch==2.12.1\nx==1; a < "3"\n'
    assert tool.pinned('torch', text) == '2.12.1'
    assert tool.pinned('x', text) == '1'
    with pytest.raises(tool.SetupError, match='does not pin numpy'):
        tool.pinned('numpy', text)


def test_the_requirements_pin_all_that_the_set_up_asks_for():
    text = (tool.ROOT / 'requirements.txt').read_text()
    for name in (
        'setuptools',
        'torch',
        'torchvision',
        tool.MMCV,
        'opencv-python-headless',
    ):
        assert tool.pinned(name, text)


# Prerequisites and messages


def test_this_machine_has_all_it_needs(tmp_path):
    assert tool.missing_prerequisites(tmp_path, disk_gb=0) == []


def test_each_missing_prerequisite_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(tool.platform, 'python_implementation', lambda: 'PyPy')
    monkeypatch.setattr(tool.shutil, 'which', lambda _: None)
    monkeypatch.setattr(
        tool.sysconfig, 'get_paths', lambda: {'include': str(tmp_path)}
    )
    monkeypatch.setattr(tool.importlib.util, 'find_spec', lambda _: None)
    sentences = tool.missing_prerequisites(tmp_path, disk_gb=1e9)
    starts = (
        'CPython 3.11',
        'A C++ compiler',
        'The headers of Python',
        'This Python cannot make',
        'About 1000000000 GB',
    )
    assert len(sentences) == len(starts)
    for sentence, start in zip(sentences, starts, strict=True):
        assert sentence.startswith(start)
        assert sentence.endswith('.')


def test_the_compiler_that_cxx_names_is_taken(monkeypatch):
    monkeypatch.setattr(
        tool.shutil, 'which', lambda n: n if n in ('mine', 'g++') else None
    )
    monkeypatch.delenv('CXX', raising=False)
    assert tool.cxx_compiler() == 'g++'
    monkeypatch.setenv('CXX', 'mine -m64')
    assert tool.cxx_compiler() == 'mine -m64'
    monkeypatch.setenv('CXX', 'absent')
    assert tool.cxx_compiler() == ''


def test_a_failing_step_shows_the_end_of_its_log(tmp_path, capsys):
    log = tmp_path / 'setup.log'
    code = 'import sys; print(*range(30), sep="\\n"); sys.exit(3)'
    with pytest.raises(tool.SetupError) as error:
        tool.run_logged('installing torch', [sys.executable, '-c', code], log)
    assert str(error.value) == (
        f'Installing torch failed (exit status 3); the whole log is {log}.'
    )
    assert capsys.readouterr().err.split() == [str(n) for n in range(10, 30)]
    assert '\n0\n1\n' in log.read_text()


def test_a_long_step_shows_that_it_runs(tmp_path, capsys):
    tool.run_logged(
        'building',
        [sys.executable, '-c', 'import time; time.sleep(1)'],
        tmp_path / 'setup.log',
        progress=lambda: '(3 of 78)',
        period=0.2,
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert set(lines) == {'[setup]   0 min (3 of 78)'}


def test_an_interrupted_step_takes_its_children_along(tmp_path):
    pid = tmp_path / 'pid'

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tool.run_logged(
            'building',
            ['sh', '-c', f'sleep 60 & echo $! > {pid}; wait'],
            tmp_path / 'setup.log',
            progress=interrupt,
            period=1,
        )
    state = Path('/proc', pid.read_text().strip(), 'stat')
    for _ in range(50):
        if not state.exists() or ') Z ' in state.read_text():
            break
        tool.time.sleep(0.1)
    else:
        pytest.fail('it still runs')


def test_compiled_counts_objects(tmp_path):
    assert tool.compiled(tmp_path) == ''
    build = tmp_path / 'build' / 'temp'
    build.mkdir(parents=True)
    (build / 'build.ninja').write_text(
        'rule compile\nbuild a.o: compile a.cpp\nbuild b.o: compile b.cpp\n'
    )
    (build / 'a.o').touch()
    assert tool.compiled(tmp_path) == '(1 of 2 files compiled)'


@pytest.mark.parametrize(
    'script, expected',
    [
        (
            'echo "noise"; echo \'{"python": "cp311", "torch": "2.12.1"}\'',
            tool.Found(python='cp311', torch='2.12.1'),
        ),
        (
            'echo "symbol lookup error" >&2; exit 127',
            tool.Found(error='exit status 127, symbol lookup error'),
        ),
        ('kill -SEGV $$', tool.Found(error='exit status -11, no output')),
    ],
)
def test_probe_reads_the_last_line_and_survives_a_crash(
    tmp_path, script, expected
):
    python = tmp_path / 'python'
    python.write_text(f'#!/bin/sh\n{script}\n')
    python.chmod(0o755)
    assert tool.probe(python) == expected


# The order of things


class Recorder(tool.Environment):
    """An environment in which pip only notes what it was asked for."""

    def __init__(self, root, states):
        super().__init__(root)
        self.python.parent.mkdir(parents=True)
        self.python.touch()
        self.states = iter(states)
        self.steps = []

    def pip(self, what, *arguments, environ=None, **_):
        self.steps.append(what)
        if what == 'building mmcv':
            assert environ['MMCV_WITH_OPS'] == '1'
            assert {
                '--no-build-isolation',
                '--no-cache-dir',
                '--no-binary=onedl-mmcv',
            } <= set(arguments)
            out = next(a for a in arguments if a.startswith('--wheel-dir='))
            wheel_at(Path(out[12:]))


@pytest.fixture
def environment(checkout, tmp_path, monkeypatch):
    """Returns a function that makes one and runs it through its states."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))

    def make(*states, stamp=None):
        made = Recorder(checkout, states)
        if stamp:
            tool.write_stamp(made.stamp, stamp)
        monkeypatch.setattr(tool, 'probe', lambda *_, **__: next(made.states))
        return made

    return make


EMPTY = tool.Found(python='cp311', error='ModuleNotFoundError: torch')
TORCH = FOUND._replace(mmcv='', error='ModuleNotFoundError: mmcv')
STALE = FOUND._replace(error='ImportError: undefined symbol: _ZN3c10')
TAIL = ['installing the libraries', 'installing sift_mm']
HEAD = ['installing the build tools', 'installing torch']
BUILD = ['building mmcv', 'installing mmcv']


def test_a_ready_environment_is_left_alone(environment, checkout, capsys):
    ready = environment(FOUND, stamp=stamp_of(checkout, FOUND))
    ready.set_up()
    assert ready.steps == []
    assert capsys.readouterr().out == '[setup] .venv is up to date\n'


def test_the_first_call_builds_and_the_next_checkout_takes_the_wheel(
    environment, checkout, tmp_path
):
    first = environment(EMPTY, TORCH, FOUND, FOUND)
    first.set_up()
    assert first.steps == [*HEAD, 'building mmcv', 'installing mmcv', *TAIL]
    assert tool.read_stamp(first.stamp) == stamp_of(checkout, FOUND)

    tool.shutil.rmtree(first.folder)
    second = environment(EMPTY, TORCH, FOUND, FOUND)
    second.set_up()
    assert second.steps == [*HEAD, 'installing mmcv', *TAIL]


def test_another_torch_does_not_take_that_wheel(environment, checkout):
    environment(EMPTY, TORCH, FOUND, FOUND).set_up()
    other = TORCH._replace(torch='2.12.1+cpu')
    tool.shutil.rmtree(checkout / '.venv')
    second = environment(EMPTY, other, FOUND, FOUND)
    second.set_up()
    assert 'building mmcv' in second.steps


def test_a_stale_mmcv_is_noticed_and_rebuilt(environment, checkout, capsys):
    stale = environment(
        STALE, STALE, STALE, STALE, FOUND, stamp=stamp_of(checkout, FOUND)
    )
    stale.set_up()
    assert stale.steps == [*HEAD, *TAIL, *BUILD]
    said = [
        line
        for line in capsys.readouterr().out.splitlines()
        if 'undefined symbol' in line
    ]
    assert len(said) == 1
    assert 'does not work with torch 2.12.1+cu130' in said[0]


def test_a_stale_mmcv_in_the_cache_too_is_built_without_it(
    environment, checkout
):
    wheel_at(tool.cache_folder() / tool.wheel_key('2.3.6', FOUND))
    stale = environment(
        STALE,
        STALE,
        STALE,
        STALE,
        STALE,
        FOUND,
        stamp=stamp_of(checkout, FOUND),
    )
    stale.set_up()
    assert stale.steps == [*HEAD, *TAIL, 'installing mmcv', *BUILD]


def test_an_mmcv_that_stays_broken_ends_in_a_sentence(environment):
    broken = environment(EMPTY, TORCH, STALE, STALE)
    with pytest.raises(tool.SetupError, match='undefined symbol.*log is'):
        broken.set_up()
    assert broken.steps == [*HEAD, *BUILD, *TAIL]  # once, not again
    assert tool.read_stamp(broken.stamp) == {}


def test_a_good_mmcv_without_a_stamp_is_kept(environment):
    by_hand = environment(FOUND, FOUND, FOUND, FOUND)
    by_hand.set_up()
    assert by_hand.steps == [*HEAD, *TAIL]


def test_an_mmcv_of_another_torch_is_replaced_even_if_it_loads(
    environment, checkout
):
    old = FOUND._replace(torch='2.11.0')
    moved = environment(
        FOUND, FOUND, FOUND, FOUND, stamp=stamp_of(checkout, old)
    )
    moved.set_up()
    assert 'installing mmcv' in moved.steps


def test_a_gpu_that_appears_gets_its_ops(environment, checkout, monkeypatch):
    monkeypatch.setenv('CUDA_HOME', '/cuda')
    grown = environment(GPU, GPU, GPU, GPU, stamp=stamp_of(checkout, FOUND))
    grown.set_up()
    assert 'building mmcv' in grown.steps
    assert json.loads(grown.stamp.read_text())['mmcv'].endswith('sm9.0')


def test_a_gpu_without_a_compiler_is_said(environment, monkeypatch):
    monkeypatch.delenv('CUDA_HOME', raising=False)
    which = tool.shutil.which
    monkeypatch.setattr(
        tool.shutil, 'which', lambda n: None if n == 'nvcc' else which(n)
    )
    blind = environment(EMPTY, TORCH._replace(device='cuda13.0-sm9.0'))
    with pytest.raises(tool.SetupError, match='no nvcc'):
        blind.set_up()


def test_a_machine_without_a_desktop_gets_the_other_opencv(environment):
    bare = FOUND._replace(cv2_error='libGL.so.1: cannot open', error='cv2')
    fixed = environment(EMPTY, TORCH, bare, FOUND)
    fixed.set_up()
    assert fixed.steps[-1] == 'installing OpenCV'


def test_torch_that_does_not_import_is_said(environment):
    with pytest.raises(tool.SetupError, match='remove that folder'):
        environment(EMPTY, EMPTY).set_up()


def test_main_says_what_is_missing(monkeypatch, capsys):
    def stop(_):
        raise tool.SetupError('No.')

    monkeypatch.setattr(tool.Environment, 'set_up', stop)
    monkeypatch.setattr(sys, 'argv', ['setup_env.py'])
    monkeypatch.setattr(tool.signal, 'signal', lambda *_: None)
    assert tool.main() == 1
    assert capsys.readouterr().err == '[setup] No.\n'
