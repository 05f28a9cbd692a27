"""The set-up, with a stand-in for the Python and the pip of `.venv`."""

import importlib.util
import json
import re
import shutil
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]
KEY = 'mmcv-2.3.6_torch-2.12.1+cu130_cp311_x86_64_cpu'

# Keeps in a file what is installed, and in mmcv's wheel what it was built
# for; `broken` has mmcv built so that it never works.
FAKE_PYTHON = """#!{python} -SE
import json, os, sys
from zipfile import ZipFile
path = os.path.dirname(sys.argv[0]) + '/state.json'
s = json.load(open(path))
command = ' '.join(sys.argv[1:])
if sys.argv[1] == '-c':
    names = ('python', 'device', 'torch', 'mmcv')
    found = {{k: s[k] for k in names if k in s}}
    ops = s.get('ops')
    if s.get('no_desktop'):
        found.update(cv2_error='libGL.so.1', error='libGL.so.1')
    elif ops == 'crash':
        print(json.dumps(found), flush=True)
        os.kill(os.getpid(), 11)
    elif not ops or ops[0] != s['torch'] or ops[1] not in ('all', s['device']):
        found['error'] = 'undefined symbol'
    print('a warning')
    print(json.dumps(found))
    sys.exit()
steps = {{' ensurepip': 'pip', ' torch==': 'torch', ' wheel ': 'build',
         '.whl': 'mmcv', 'headless': 'opencv'}}
step = next((step for word, step in steps.items() if word in command), 'rest')
s['steps'].append(step)
if s.get('fails') == step:
    print(*range(30), sep='\\n')
elif step == 'torch':
    s['torch'] = command.split(' torch==')[1].split()[0] + '+cu130'
elif step == 'build':
    assert os.environ['MMCV_WITH_OPS'] == '1'
    for flag in ('-build-isolation', '-cache-dir', '-binary=onedl-mmcv'):
        assert f'--no{{flag}} ' in command
    folder = command.split('--wheel-dir=')[1].split()[0]
    os.mkdir(folder)
    ops = [s['torch'], 'all' if s['device'] != 'cpu' else 'cpu']
    with ZipFile(folder + '/onedl_mmcv-2.3.6.whl', 'w') as wheel:
        wheel.writestr('mmcv/_ext.so', json.dumps(s.get('broken') or ops))
elif step == 'mmcv':
    with ZipFile(sys.argv[-1]) as wheel:
        s.update(mmcv='2.3.6', ops=json.loads(wheel.read('mmcv/_ext.so')))
elif step == 'opencv':
    s.pop('no_desktop')
json.dump(s, open(path, 'w'))
sys.exit(s.get('fails') == step)
"""


class Checkout:
    """A checkout whose `.venv` is the stand-in."""

    def __init__(self, root, monkeypatch):
        self.root = root
        (root / 'tools').mkdir(parents=True)
        for name in ('tools/setup_env.py', 'pyproject.toml'):
            shutil.copy(ROOT / name, root / name)
        for path in ROOT.glob('requirements*.txt'):
            shutil.copy(path, root)
        spec = importlib.util.spec_from_file_location(
            'setup_env', root / 'tools' / 'setup_env.py'
        )
        self.tool = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.tool)
        monkeypatch.setattr(self.tool.platform, 'machine', lambda: 'x86_64')
        self.tool.PYTHON.parent.mkdir(parents=True)
        self.tool.PYTHON.write_text(FAKE_PYTHON.format(python=sys.executable))
        self.tool.PYTHON.chmod(0o755)
        self.state = self.tool.PYTHON.parent / 'state.json'
        self.state.write_text('{"python": "cp311", "device": "cpu"}')

    def change(self, **changes):
        state = {**json.loads(self.state.read_text()), **changes}
        self.state.write_text(
            json.dumps({k: v for k, v in state.items() if v is not None})
        )

    def set_up(self):
        """Set up and return the steps that were done."""
        self.change(steps=[])
        self.tool.set_up()
        return self.steps()

    def steps(self):
        return ' '.join(json.loads(self.state.read_text())['steps'])


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Return a function that makes a checkout of this name."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setenv('CUDA_HOME', '/cuda')
    space = SimpleNamespace(free=1e11)  # of a machine with enough
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: space)
    return lambda name='one': Checkout(tmp_path / name, monkeypatch)


@pytest.fixture
def cached(tmp_path):
    return tmp_path / 'cache' / 'sift_mm' / 'wheels' / KEY


def test_mmcv_is_built_once_for_all_checkouts(make, cached, capsys):
    first = make()
    assert first.set_up() == 'pip torch build mmcv rest'
    assert [p.name for p in cached.iterdir()] == ['onedl_mmcv-2.3.6.whl']
    assert first.set_up() == ''
    assert capsys.readouterr().out.endswith('[setup] .venv is up to date\n')
    assert make('two').set_up() == 'pip torch mmcv rest'


@pytest.mark.parametrize(
    'change, steps',
    [
        (dict(mmcv=None, ops=None), 'pip torch mmcv rest'),  # uninstalled
        (dict(mmcv='2.3.5'), 'pip torch mmcv rest'),
        (dict(ops=['2.11.0', 'cpu']), 'pip torch rest mmcv'),  # does not load
        (dict(ops='crash'), 'pip torch rest mmcv'),
        (dict(torch='2.11.0+cpu'), 'pip torch rest'),  # pip brings it back
        (dict(python='cp312'), 'pip torch build mmcv rest'),
        (dict(device='cuda13.0-sm9.0'), 'pip torch rest build mmcv'),
    ],
)
def test_what_has_changed_is_mended(make, change, steps):
    checkout = make()
    checkout.set_up()
    checkout.change(**change)
    assert checkout.set_up() == steps
    assert checkout.set_up() == ''


def test_edited_requirements_are_installed(make):
    checkout = make()
    checkout.set_up()
    for name in ('requirements.txt', 'requirements-dev.txt', 'pyproject.toml'):
        with (checkout.root / name).open('a') as file:
            file.write('# edited\n')
        assert checkout.set_up() == 'pip torch rest'
    assert checkout.set_up() == ''


def test_another_torch_has_another_mmcv_even_if_the_old_one_loads(make):
    checkout = make()
    checkout.set_up()
    checkout.tool.PINS['torch'] = '2.13.0'
    checkout.change(torch='2.13.0+cu130', ops=['2.13.0+cu130', 'cpu'])
    assert checkout.set_up() == 'pip torch build mmcv rest'


def test_cuda_ops_serve_where_the_gpu_is_hidden(make):
    checkout = make()
    checkout.change(device='cuda13.0-sm9.0;10.0 /x')
    checkout.set_up()
    folders = checkout.tool.Path(checkout.root.parent, 'cache').rglob('mmcv*')
    assert [p.name for p in folders] == [
        KEY.replace('_cpu', '_cuda13.0-sm9.0-10.0-x')
    ]
    checkout.change(device='cpu', ops=['2.12.1+cu130', 'all'])
    assert checkout.set_up() == ''


def test_a_cached_wheel_that_does_not_work_is_replaced(make, cached):
    make().set_up()
    (wheel,) = cached.iterdir()
    with zipfile.ZipFile(wheel, 'w') as file:
        file.writestr('mmcv/_ext.so', '["2.11.0", "cpu"]')
    assert make('two').set_up() == 'pip torch mmcv rest mmcv build mmcv'
    wheel.write_bytes(wheel.read_bytes()[:50])  # cut short
    assert make('three').set_up() == 'pip torch build mmcv rest'


def test_an_mmcv_that_never_works_ends_in_a_sentence(make):
    checkout = make()
    checkout.change(broken=['2.11.0', 'cpu'])
    with pytest.raises(checkout.tool.SetupError, match='undefined.*log is'):
        checkout.set_up()
    assert checkout.steps() == 'pip torch build mmcv rest'  # built once


@pytest.mark.parametrize('step', ['torch', 'build', 'mmcv', 'rest'])
def test_after_a_failure_the_next_call_goes_on(make, capsys, step):
    checkout = make()
    checkout.change(fails=step)
    with pytest.raises(checkout.tool.SetupError, match=r'\(exit status 1\)'):
        checkout.set_up()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [str(n) for n in range(10, 30)]  # the end of its output
    assert '\n9\n' in checkout.tool.LOG.read_text()
    checkout.change(fails=None)
    built = {'mmcv': 'mmcv ', 'rest': ''}.get(step, 'build mmcv ')
    assert checkout.set_up() == f'pip torch {built}rest'
    assert checkout.set_up() == ''


def test_a_gpu_without_its_compiler_is_said(make, monkeypatch):
    monkeypatch.delenv('CUDA_HOME')
    which = shutil.which
    monkeypatch.setattr(shutil, 'which', lambda n: n != 'nvcc' and which(n))
    checkout = make()
    checkout.change(device='cuda13.0-sm9.0')
    with pytest.raises(checkout.tool.SetupError, match='no nvcc'):
        checkout.set_up()


def test_a_machine_without_a_desktop_gets_the_other_opencv(make):
    checkout = make()
    checkout.change(no_desktop=True)
    assert checkout.set_up() == 'pip torch build mmcv rest opencv'


def test_each_missing_prerequisite_is_a_sentence(make, monkeypatch, capsys):
    tool = make().tool
    assert tool.missing_prerequisites(disk_gb=0) == []
    monkeypatch.setattr(tool.platform, 'python_implementation', lambda: 'PyPy')
    monkeypatch.setattr(tool.shutil, 'which', lambda _: None)
    monkeypatch.setattr(tool.sysconfig, 'get_paths', lambda: {'include': ''})
    monkeypatch.setattr(tool.importlib.util, 'find_spec', lambda _: None)
    monkeypatch.setattr(tool, 'DISK_GB', 1e9)
    monkeypatch.setattr(tool.signal, 'signal', lambda *_: None)
    monkeypatch.setattr(sys, 'argv', ['setup_env.py'])
    assert tool.main() == 1
    message = capsys.readouterr().err
    assert re.findall(r'(?m)^(?:\[setup\] )?(\w+ \S+ \w+).*\.$', message) == [
        'CPython 3.11 or',
        'A C++ compiler',
        'The headers of',
        'This Python cannot',
        'About 1000000000 GB',
    ]
    assert not tool.LOG.exists()  # nothing was begun


def test_a_long_step_is_shown_and_interrupted_with_its_children(
    make, monkeypatch, tmp_path
):
    tool = make().tool
    tool.PYTHON.write_text(
        '#!/bin/sh\necho "[3/78] c++"; sleep 60 & echo $! > '
        f'{tmp_path}/pid; wait\n'
    )
    said = []

    def interrupt(text):
        said.append(text)
        if '[3/78]' in text:
            raise KeyboardInterrupt

    monkeypatch.setattr(tool, 'PROGRESS_SECONDS', 0.2)
    monkeypatch.setattr(tool, 'say', interrupt)
    with pytest.raises(KeyboardInterrupt):
        tool.run('Building mmcv', 'pip')
    assert said[-1] == '  0 min: [3/78] c++'
    child = Path('/proc', (tmp_path / 'pid').read_text().strip(), 'stat')
    for _ in range(50):
        if not child.exists() or ') Z ' in child.read_text():
            break
        time.sleep(0.1)
    else:
        pytest.fail('it still runs')
