"""The set-up, with a stand-in for the Python of `.venv`."""

import importlib.util
import json
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Keeps a list of the steps; mmcv works after `mmcv`, or after `fresh` alone.
FAKE_PYTHON = """#!{python} -SE
import json, os, sys
path = os.path.dirname(sys.argv[0]) + '/state.json'
s = json.load(open(path))
command = ' '.join(sys.argv[1:])
if command.endswith('--check'):
    sys.exit('undefined symbol' if s['broken'] else 0)
steps = {{' ensurepip': 'pip', ' torch==': 'torch', '--fresh': 'fresh',
         'build_mmcv': 'mmcv', 'headless': 'opencv'}}
step = next((step for word, step in steps.items() if word in command), 'rest')
s['steps'].append(step)
print(*range(30), sep='\\n')
s['broken'] = s['broken'] and step != s.get('mended_by', 'mmcv')
json.dump(s, open(path, 'w'))
sys.exit(s.get('fails') == step)
"""
ALL = 'pip torch mmcv rest opencv'


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """Load the tool of a checkout whose `.venv` is the stand-in."""
    (tmp_path / 'tools').mkdir()
    for path in (*ROOT.glob('requirements*.txt'), ROOT / 'pyproject.toml'):
        shutil.copy(path, tmp_path)
    shutil.copy(ROOT / 'tools/setup_env.py', tmp_path / 'tools')
    path = tmp_path / 'tools/setup_env.py'
    spec = importlib.util.spec_from_file_location('setup_env', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.PYTHON.parent.mkdir(parents=True)
    module.PYTHON.write_text(FAKE_PYTHON.format(python=sys.executable))
    module.PYTHON.chmod(0o755)
    space = SimpleNamespace(free=1e11)
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: space)
    change(module, broken=True)
    return module


def change(tool, **changes):
    state = tool.PYTHON.with_name('state.json')
    old = json.loads(state.read_text()) if state.exists() else {}
    state.write_text(json.dumps(old | changes))


def set_up(tool):
    """Set up and return the steps that were done."""
    change(tool, steps=[])
    tool.set_up()
    state = json.loads(tool.PYTHON.with_name('state.json').read_text())
    return ' '.join(state['steps'])


def test_steps_are_done_once(tool, capsys):
    assert set_up(tool) == ALL
    assert set_up(tool) == ''
    assert capsys.readouterr().out.endswith('[setup] .venv is up to date\n')
    change(tool, broken=True)  # another torch, say
    assert set_up(tool) == ALL
    for name in ('requirements.txt', 'requirements-dev.txt', 'pyproject.toml'):
        with (tool.ROOT / name).open('a') as file:
            file.write('# edited\n')
        assert set_up(tool) == ALL
    assert set_up(tool) == ''


def test_a_wheel_of_the_cache_that_does_not_work_is_built_anew(tool):
    change(tool, mended_by='fresh')
    assert set_up(tool) == f'{ALL} fresh'
    assert set_up(tool) == ''
    change(tool, broken=True, mended_by='nothing')
    with pytest.raises(SystemExit, match=r'trial failed.*setup-trial\.log'):
        set_up(tool)


@pytest.mark.parametrize('step', ['torch', 'mmcv', 'rest'])
def test_after_a_failure_the_next_call_goes_on(tool, capsys, step):
    change(tool, fails=step)
    with pytest.raises(SystemExit, match=r'failed; the whole log is .*\.log'):
        set_up(tool)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [str(n) for n in range(10, 30)]  # the end of its output
    change(tool, fails=None)
    assert set_up(tool) == ALL and set_up(tool) == ''


def test_each_missing_prerequisite_is_a_sentence(tool, monkeypatch):
    tool.check_prerequisites(12)
    monkeypatch.setattr(tool.platform, 'python_implementation', lambda: 'PyPy')
    monkeypatch.setattr(tool.shutil, 'which', lambda _: None)
    monkeypatch.setattr(tool.sysconfig, 'get_paths', lambda: {'include': ''})
    monkeypatch.setattr(tool.importlib.util, 'find_spec', lambda _: None)
    with pytest.raises(SystemExit) as stop:
        tool.check_prerequisites(1000)
    words = r'(?m)^\[setup\] This needs (\S+ ?\S*).*\.$'
    assert re.findall(words, str(stop.value)) == [
        *('CPython 3.11', 'a C++', 'Python.h: `apt', 'ensurepip: `apt'),
        '1000 GB',
    ]


def test_a_long_step_shows_the_time_left_and_ends_with_its_children(
    tool, monkeypatch, tmp_path, capsys
):
    tool.PYTHON.write_text(
        '#!/bin/sh\necho "[3/78] c++"; sleep 60 & echo $! > '
        f'{tmp_path}/pid; wait\n'
    )
    said = []

    def interrupt(text):
        said.append(text)
        if 'minutes left' in text:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(tool, 'PROGRESS_SECONDS', 0.2)
    monkeypatch.setattr(tool, 'say', interrupt)
    monkeypatch.setattr(tool, 'set_up', lambda: tool.run('mmcv'))
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit, match='143'):
            tool.main()
    finally:
        signal.signal(signal.SIGTERM, before)
    # 75 files more, 26 times the time of three, and the other steps.
    later = sum(tool.SECONDS.values())
    left = float(re.search(r'about ([\d.]+) minutes', said[-1])[1])
    assert later / 60 < left < later / 60 + 1
    child = Path('/proc', (tmp_path / 'pid').read_text().strip(), 'stat')
    for _ in range(50):
        if not child.exists() or ') Z ' in child.read_text():
            break
        time.sleep(0.1)
    else:
        pytest.fail('it still runs')
