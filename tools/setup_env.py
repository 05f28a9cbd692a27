"""Make `.venv` with the pinned requirements of sift_mm.

`make setup` runs this with the system's Python: it imports the standard
library only. After a failure the next call goes on from there.
"""

import hashlib
import importlib.util
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / '.venv'
PYTHON = VENV / 'bin' / 'python'
STAMP = VENV / 'setup.stamp'  # digest of the files that were installed from
FILES = [ROOT / 'requirements.txt', ROOT / 'requirements-dev.txt']
PINS = re.findall(r'(?m)^[\w-]+==[^\s;#]+', FILES[0].read_text())
BUILD_MMCV = ROOT / 'tools' / 'build_mmcv.py'
PROGRESS_SECONDS = 15.0
# Estimates for the time that is left; mmcv takes 280 s of CPU.
SECONDS = {'pip': 8.0, 'torch': 90, 'libraries': 50, 'OpenCV': 4}
SECONDS['mmcv'] = 20 + 280 / len(os.sched_getaffinity(0))


def say(text: str) -> None:
    """Print a line of progress at once, also into a pipe."""
    print(f'[setup] {text}', flush=True)


def check_prerequisites(gigabytes: int) -> None:
    """Exit with one sentence for each missing prerequisite."""
    version = '.'.join(platform.python_version_tuple()[:2])
    name = platform.python_implementation()
    compiler = (os.environ.get('CXX') or 'c++').split()[0]
    header = Path(sysconfig.get_paths()['include'], 'Python.h')
    needs = {
        f'CPython 3.11 or newer, and this is {name} {version}: name another '
        'one, as in `make test PYTHON=python3.11`': (
            sys.version_info >= (3, 11) and name == 'CPython'
        ),
        f'a C++ compiler, and there is no {compiler}: install one, on Debian '
        'or Ubuntu with `apt install g++`, or name yours in CXX': (
            shutil.which(compiler)
        ),
        f'Python.h: `apt install python{version}-dev`': header.exists(),
        f'ensurepip: `apt install python{version}-venv`': (
            importlib.util.find_spec('ensurepip')
        ),
        f'{gigabytes} GB of free disk in {ROOT}: make room': (
            shutil.disk_usage(ROOT).free >= gigabytes * 1e9
        ),
    }
    if missing := [need for need, met in needs.items() if not met]:
        sys.exit('\n'.join(f'[setup] This needs {need}.' for need in missing))


def run(step: str, *command: str | Path) -> None:
    """Run a step with `.venv`'s Python; exit if it fails."""
    own, started = SECONDS.pop(step, 10), time.monotonic()
    later = sum(SECONDS.values())
    log = VENV / f'setup-{step}.log'
    say(f'{step} (log: {log})')
    with log.open('wb') as output:
        process = subprocess.Popen(
            [str(PYTHON), *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        while process.poll() is None:
            try:
                process.wait(PROGRESS_SECONDS)
            except subprocess.TimeoutExpired:
                spent = time.monotonic() - started
                text = log.read_text(errors='replace')
                for done, total in re.findall(r'\[(\d+)/(\d+)\] ', text)[-1:]:
                    own = spent * int(total) / int(done)  # ninja's files
                left = (max(own - spent, spent / 4) + later) / 60
                say(f'  {spent:.0f} s, about {left:.1f} minutes left')
    finally:
        if process.poll() is None:  # interrupted: end its compilers too
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
    if process.returncode:
        lines = log.read_text(errors='replace').splitlines()[-20:]
        print(*lines, sep='\n', file=sys.stderr)
        sys.exit(f'[setup] {step} failed; the whole log is {log}.')


def mmcv_works() -> bool:
    """Try an op of the mmcv in `.venv`; a crash counts as a failure."""
    command = [str(PYTHON), str(BUILD_MMCV), '--check']
    return not subprocess.run(command, capture_output=True).returncode


def set_up() -> None:
    """Update `.venv`."""
    # The editable install points at the checkout: a moved one needs another.
    sources = [path.read_bytes() for path in (*FILES, ROOT / 'pyproject.toml')]
    digest = hashlib.sha256(b''.join([bytes(ROOT), *sources])).hexdigest()
    stamp = STAMP.read_text() if STAMP.exists() else ''
    if stamp == digest and PYTHON.exists() and mmcv_works():
        return say('.venv is up to date')
    check_prerequisites(3 if stamp else 12)  # torch's CUDA libraries, twice
    if not PYTHON.exists():
        options = ['--clear', '--without-pip', str(VENV)]
        subprocess.run([sys.executable, '-m', 'venv', *options], check=True)
    run('pip', '-m', 'ensurepip', '--default-pip')
    pip = ['-m', 'pip', 'install']
    tools = ['pip>=23.1', 'ninja', 'packaging', 'wheel']
    torch = [p for p in PINS if re.match('setuptools|torch', p)]
    # The constraints keep torchvision from bringing another NumPy.
    run('torch', *pip, *tools, *torch, '-c', FILES[0])
    run('mmcv', BUILD_MMCV)
    pip.append('--no-build-isolation')  # setuptools is there
    run('libraries', *pip, '-r', FILES[0], '-r', FILES[1], '-e', ROOT)
    # mmdet brings OpenCV twice: the build that needs no desktop wins.
    opencv = next(p for p in PINS if p.startswith('opencv-python-headless'))
    run('OpenCV', *pip, '--no-deps', '--force-reinstall', opencv)
    if not mmcv_works():
        say('the mmcv of the cache does not work: building it anew')
        run('mmcv', BUILD_MMCV, '--fresh')
        run('trial', BUILD_MMCV, '--check')
    STAMP.write_text(digest)
    say('.venv is ready')


def main() -> None:
    """Set up, and end the current step with this process."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        set_up()
    except KeyboardInterrupt:
        sys.exit('[setup] stopped; another call goes on from here')
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f'[setup] {error}')


if __name__ == '__main__':
    main()
