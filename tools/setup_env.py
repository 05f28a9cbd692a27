"""Make `.venv` with everything that sift_mm is tested with.

`make setup` runs this with the system's Python, before anything is installed:
the standard library is all it may import. Most of it is about mmcv, whose
compiled ops must fit the torch beside them:

* it is compiled here, after torch, against that torch (`--no-build-isolation`
  and no pip cache: pip would hand out a wheel built against another torch);
* that takes long, so the wheel is kept in the user's cache folder under a name
  that holds all it depends on;
* an op is tried at every call, and they are built anew if it does not work.

Each step may be repeated: after a failure the next call goes on from there.
A call that finds everything in place takes about two seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / '.venv'
PYTHON = VENV / 'bin' / 'python'
LOG = VENV / 'setup.log'
STAMP = VENV / 'setup.json'  # what the last call left
FILES = [ROOT / 'requirements.txt', ROOT / 'requirements-dev.txt']
PINS = dict(re.findall(r'(?m)^([\w-]+)==([^\s;#]+)', FILES[0].read_text()))
BUILD_TOOLS = ('pip>=23.1', 'ninja', 'packaging', 'wheel')
DISK_GB = 12  # torch's CUDA libraries, pip's copies of them, mmcv's objects
BUILD_CORE_MINUTES = 40  # mmcv 2.3.6 with its CPU ops: 20 minutes on 2 cores
PROGRESS_SECONDS = 60.0

# Runs in .venv and prints what is there, twice: ops built against another
# torch may also end the process. The answer of the op is known: the second
# box overlaps the first by 0.81, the third none. A CUDA device that mmcv was
# not built for makes it fail.
PROBE = """
import importlib.metadata, json, os, sys
found = {'python': 'cp%d%d' % sys.version_info[:2], 'device': 'cpu'}
try:
    import torch
    found['torch'] = torch.__version__
    devices = range(torch.cuda.device_count())
    if devices or os.environ.get('FORCE_CUDA') == '1':
        archs = os.environ.get('TORCH_CUDA_ARCH_LIST') or ' '.join(sorted({
            '%d.%d' % torch.cuda.get_device_capability(i) for i in devices}))
        found['device'] = 'cuda%s-sm%s' % (torch.version.cuda, archs or 'all')
    found['mmcv'] = importlib.metadata.version('onedl-mmcv')
    print('\\n' + json.dumps(found), flush=True)
    try:
        import cv2
    except ImportError as error:
        found['cv2_error'] = str(error)
    from mmcv import _ext
    boxes = torch.tensor([[0., 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])
    scores = torch.tensor([.9, .8, .7])
    for device in ['cpu'] + ['cuda'] * bool(devices):
        kept = _ext.nms(boxes.to(device), scores.to(device),
                        iou_threshold=0.5, offset=0).tolist()
        assert kept == [0, 2], 'nms on %s keeps %s' % (device, kept)
except Exception as error:
    found['error'] = '%s: %s' % (type(error).__name__, error)
print('\\n' + json.dumps(found))
"""


class SetupError(Exception):
    """What stops the set-up, in one sentence for the user."""


def say(text: str) -> None:
    """Print a line of progress at once, also into a pipe."""
    print(f'[setup] {text}', flush=True)


def probe() -> dict[str, str]:
    """See what `.venv` holds, as PROBE tells it, and whether it works."""
    if not PYTHON.exists():
        return {'error': 'there is none'}
    done = subprocess.run(
        [PYTHON, '-c', PROBE], capture_output=True, text=True
    )
    lines = re.findall(r'(?m)^\{"python".*', done.stdout)
    found = json.loads(lines[-1]) if lines else {}
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ['no output']
        found['error'] = f'exit status {done.returncode}, {last[0]}'
    return found


def missing_prerequisites(disk_gb: float) -> list[str]:
    """Return one sentence for each thing that has to be there beforehand."""
    version = '.'.join(platform.python_version_tuple()[:2])
    implementation = platform.python_implementation()
    compiler = os.environ.get('CXX') or 'c++'
    header = Path(sysconfig.get_paths()['include'], 'Python.h')
    free = shutil.disk_usage(ROOT).free / 1e9
    checks = {
        f'CPython 3.11 or newer is needed, this is {implementation} {version}'
        ': name another one, as in `make test PYTHON=python3.11`.': (
            sys.version_info >= (3, 11) and implementation == 'CPython'
        ),
        f'A C++ compiler is needed to build mmcv, and there is no {compiler}: '
        'install one, on Debian or Ubuntu with `apt install g++`, or name '
        'yours in CXX.': shutil.which(compiler.split()[0]),
        f'The headers of Python {version} (Python.h) are needed to build mmcv'
        ': install them, on Debian or Ubuntu with '
        f'`apt install python{version}-dev`.': header.exists(),
        'This Python cannot make virtual environments (no ensurepip): on '
        f'Debian or Ubuntu `apt install python{version}-venv` helps.': (
            importlib.util.find_spec('ensurepip')
        ),
        f'About {disk_gb:.0f} GB of free disk are needed in {ROOT}, '
        f'{free:.0f} GB are left.': free >= disk_gb,
    }
    return [sentence for sentence, good in checks.items() if not good]


def run(what: str, *command: str | Path, **environ: str) -> None:
    """Run a module of `.venv`, its output in the log.

    Each minute it prints the time and the last line of the output.

    Raises:
        SetupError: If it fails; the end of its output was printed then.
    """
    started = time.monotonic()
    path = os.environ.get('PATH', os.defpath)
    environ = {
        **os.environ,
        # For ninja: without it files are compiled one at a time.
        'PATH': f'{PYTHON.parent}{os.pathsep}{path}',
        'PIP_DISABLE_PIP_VERSION_CHECK': '1',
        **environ,
    }
    with LOG.open('ab') as log:
        process = subprocess.Popen(
            [PYTHON, '-m', *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environ,
        )
    try:
        while process.poll() is None:
            try:
                process.wait(PROGRESS_SECONDS)
            except subprocess.TimeoutExpired:
                minutes = (time.monotonic() - started) / 60
                last = LOG.read_text(errors='replace').split('\n')[-2:][0]
                say(f'  {minutes:.0f} min: {last.strip()[:50]}')
    finally:
        if process.poll() is None:  # interrupted: its compilers too
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
    if process.returncode:
        lines = LOG.read_text(errors='replace').splitlines()[-20:]
        print(*lines, sep='\n', file=sys.stderr)
        raise SetupError(
            f'{what} failed (exit status {process.returncode}); the whole log '
            f'is {LOG}.'
        )


def pip_install(what: str, *arguments: str | Path) -> None:
    """Run `pip install` in `.venv`."""
    run(f'Installing {what}', 'pip', 'install', *arguments)


def wheel_folder(found: dict[str, str]) -> Path:
    """Name the cached mmcv wheel's folder by all that its ops depend on."""
    base = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    key = (
        f'mmcv-{PINS["onedl-mmcv"]}_torch-{found["torch"]}_'
        f'{found["python"]}_{platform.machine()}_{found["device"]}'
    )
    folder = Path(base, 'sift_mm', 'wheels', re.sub(r'[^\w.+-]+', '-', key))
    return folder.expanduser()


def build_mmcv(found: dict[str, str]) -> Path:
    """Compile mmcv against the torch of `.venv`, keep its wheel in the cache.

    Raises:
        SetupError: If it cannot be built.
    """
    cuda = found['device'] != 'cpu'
    if cuda and not (shutil.which('nvcc') or os.environ.get('CUDA_HOME')):
        raise SetupError(
            'torch sees a CUDA device, but there is no nvcc to build '
            "mmcv's CUDA ops with: install the CUDA toolkit that torch "
            f'{found["torch"]} names, or hide the device with '
            'CUDA_VISIBLE_DEVICES= to stay on the CPU.'
        )
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9
    jobs = max(1, min(cores, int(memory / (4 if cuda else 2))))
    version = PINS['onedl-mmcv']
    say(
        f'building mmcv {version} against torch {found["torch"]}: about '
        f'{max(2, BUILD_CORE_MINUTES // jobs)} minutes on {jobs} cores'
        f'{", more for the CUDA ops" * cuda}'
    )
    build = VENV / 'build'
    shutil.rmtree(build, ignore_errors=True)  # of an interrupted call
    build.mkdir()
    run(
        'Building mmcv',
        *('pip', 'wheel', '-v', '--no-deps', '--no-build-isolation'),
        *('--no-cache-dir', '--no-binary=onedl-mmcv'),
        *(f'--wheel-dir={build / "wheel"}', f'onedl-mmcv=={version}'),
        MAX_JOBS=os.environ.get('MAX_JOBS', str(jobs)),
        MMCV_WITH_OPS='1',
        TMPDIR=str(build),
    )
    built = next((build / 'wheel').glob('*.whl'), None)
    if built is None:
        raise SetupError(f'pip left no wheel of mmcv; the log is {LOG}.')
    # It appears in the cache whole or not at all.
    kept = wheel_folder(found) / built.name
    kept.parent.mkdir(parents=True, exist_ok=True)
    partial = kept.with_suffix(f'.{os.getpid()}')
    shutil.copyfile(built, partial)
    partial.replace(kept)
    shutil.rmtree(build, ignore_errors=True)
    return kept


def install_mmcv(found: dict[str, str], fresh: bool = False) -> bool:
    """Install mmcv from the cache, or build it; return whether it was built.

    A `fresh` one is built although the cache has a wheel.
    """
    folder = wheel_folder(found)
    whole = filter(zipfile.is_zipfile, folder.glob('*.whl'))
    kept = None if fresh else next(whole, None)
    if kept:
        say(f'installing the mmcv that was built before: {kept}')
    wheel = kept or build_mmcv(found)
    pip_install('mmcv', '--no-deps', '--force-reinstall', wheel)
    # Tells a later call against which torch, should this one stop here.
    STAMP.write_text(json.dumps({'mmcv': folder.name}))
    return not kept


def fits(stamp: dict[str, str], found: dict[str, str]) -> bool:
    """Whether the installed mmcv is the pinned one, built for this torch.

    Its device is left out: the op that is tried tells, and CUDA ops serve
    where the GPU is hidden.
    """
    stem = wheel_folder(found).name.rpartition('_')[0]
    return (
        found.get('mmcv') == PINS['onedl-mmcv']
        and stamp.get('mmcv', '').rpartition('_')[0] == stem
    )


def set_up() -> None:
    """Bring `.venv` up to date."""
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        stamp = {}
    # The editable install points at the checkout: a moved one needs another.
    digest = hashlib.sha256(str(ROOT).encode())
    for path in (*FILES, ROOT / 'pyproject.toml'):
        digest.update(path.read_bytes())
    inputs = digest.hexdigest()

    found = probe()
    current = stamp.get('inputs') == inputs and 'error' not in found
    if current and fits(stamp, found):
        say('.venv is up to date')
        return
    missing = missing_prerequisites(3 if 'torch' in found else DISK_GB)
    if missing:
        raise SetupError('\n'.join(missing))

    if not PYTHON.exists():
        say(f'making .venv with Python {platform.python_version()}')
        command = [sys.executable, '-m', 'venv', '--clear', '--without-pip']
        subprocess.run([*command, VENV], check=True)
    LOG.write_text('')
    run('Installing pip', 'ensurepip', '--default-pip')
    pins = [f'{n}=={PINS[n]}' for n in ('setuptools', 'torch', 'torchvision')]
    say(f'installing {" and ".join(pins[1:])}; log: {LOG}')
    # The constraints keep torchvision from bringing another NumPy.
    pip_install('torch', *BUILD_TOOLS, *pins, '-c', FILES[0])
    found = probe()
    if 'torch' not in found:
        raise SetupError(
            f'torch does not import in .venv ({found.get("error")}): remove '
            'that folder and call this again.'
        )
    built = not fits(stamp, found) and install_mmcv(found)
    say('installing the other libraries')
    options = [part for path in FILES for part in ('-r', path)]
    pip_install('the libraries', *options, '-e', ROOT)
    found = probe()
    if 'cv2_error' in found:
        # mmdet brings OpenCV twice, in one folder, and a machine without a
        # desktop lacks the libraries of the one that opens windows.
        say(
            f'OpenCV does not import ({found["cv2_error"]}): taking the build '
            'that opens no windows'
        )
        name = 'opencv-python-headless'
        wanted = f'{name}=={PINS[name]}'
        pip_install('OpenCV', '--no-deps', '--force-reinstall', wanted)
        found = probe()
    for fresh in (False, True):
        if 'error' in found and not built:
            say(f'mmcv does not work ({found["error"]}): installing it anew')
            built = install_mmcv(found, fresh)
            found = probe()
    if 'error' in found:
        raise SetupError(
            f'mmcv was built against torch {found.get("torch")} but does not '
            f'work ({found["error"]}); the log is {LOG}.'
        )
    stamp = {**json.loads(STAMP.read_text()), 'inputs': inputs}
    STAMP.write_text(json.dumps(stamp, indent=2))
    say('.venv is ready')


def main() -> int:
    """Set up, or say in one sentence why not."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    # Unwind on termination too, so that no build goes on without us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        set_up()
    except KeyboardInterrupt:
        say('stopped; another call goes on from here')
        return 130
    except (SetupError, OSError, subprocess.CalledProcessError) as error:
        print(f'[setup] {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
