"""Make `.venv` with everything that sift_mm is tested with.

`make setup` runs this with the system's Python, before anything is installed:
the standard library is all it may import. Most of it is about mmcv, whose
compiled ops must fit the torch beside them:

* it is compiled here, after torch, against that torch (`--no-build-isolation`
  and no pip cache: pip would hand out a wheel built against another torch);
* that takes long, so the wheel is kept in the user's cache folder under a name
  that holds all it depends on;
* whether the ops load is tried at every call, and they are built anew if not.

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
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ('requirements.txt', 'requirements-dev.txt')
MMCV = 'onedl-mmcv'
BUILD_TOOLS = ('pip>=23.1', 'ninja', 'packaging', 'wheel')
DISK_GB = 12  # torch's CUDA libraries, pip's copies of them, mmcv's objects
BUILD_CORE_MINUTES = 40  # mmcv 2.3.6 with its CPU ops: 20 minutes on 2 cores

# Runs in .venv. The op's answer is known: the second box overlaps the first
# by 0.81, the third none. The last line it prints is the result.
PROBE = """
import importlib.metadata, json, os, sys
found = {'python': 'cp%d%d' % sys.version_info[:2]}
try:
    found['mmcv'] = importlib.metadata.version('onedl-mmcv')
except importlib.metadata.PackageNotFoundError:
    pass
try:
    import torch
    found['torch'] = torch.__version__
    if torch.cuda.is_available() or os.environ.get('FORCE_CUDA') == '1':
        archs = {'%d.%d' % torch.cuda.get_device_capability(i)
                 for i in range(torch.cuda.device_count())}
        archs = os.environ.get('TORCH_CUDA_ARCH_LIST') or ' '.join(
            sorted(archs)) or 'all'
        found['device'] = 'cuda%s-sm%s' % (torch.version.cuda, archs)
    try:
        import cv2
    except ImportError as error:
        found['cv2_error'] = str(error)
    from mmcv import _ext
    if '--run-op' in sys.argv:
        from mmcv.ops import nms
        boxes = torch.tensor([[0., 0., 10., 10.], [1., 1., 10., 10.],
                              [20., 20., 30., 30.]])
        scores = torch.tensor([.9, .8, .7])
        for device in ['cpu'] + ['cuda'] * torch.cuda.is_available():
            kept = nms(boxes.to(device), scores.to(device), 0.5)[1].tolist()
            assert kept == [0, 2], 'nms on %s kept %s' % (device, kept)
except Exception as error:
    found['error'] = '%s: %s' % (type(error).__name__, error)
print()
print(json.dumps(found))
"""


class SetupError(Exception):
    """What stops the set-up, in one sentence for the user."""


class Found(NamedTuple):
    """What a virtual environment holds.

    Attributes:
        python: The interpreter's tag, such as `cp311`.
        torch: Its full version, such as `2.12.1+cu130`; empty if it is
            missing.
        device: What mmcv's ops are built for there: `cpu`, or CUDA's version
            and the architectures, such as `cuda13.0-sm9.0`.
        mmcv: Its version; empty if it is missing.
        cv2_error: Why OpenCV does not import; empty if it does.
        error: Why torch or mmcv's ops do not load; empty if they do.
    """

    python: str = ''
    torch: str = ''
    device: str = 'cpu'
    mmcv: str = ''
    cv2_error: str = ''
    error: str = ''


def say(text: str) -> None:
    """Print a line of progress at once, also into a pipe."""
    print(f'[setup] {text}', flush=True)


def probe(python: Path, run_op: bool = False) -> Found:
    """See what the environment of an interpreter holds and whether it loads.

    Args:
        python: The environment's interpreter.
        run_op: Whether to run one of mmcv's ops too, on each kind of device.
    """
    command = [str(python), '-c', PROBE] + ['--run-op'] * run_op
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        return Found(**json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, TypeError, ValueError):
        # An extension built against another torch may also end the process.
        last = done.stderr.strip().splitlines()[-1:] or ['no output']
        return Found(error=f'exit status {done.returncode}, {last[0]}')


def pinned(name: str, requirements: str) -> str:
    """Return the version that the text of a requirements file pins.

    Raises:
        SetupError: If there is no line `name==version`.
    """
    match = re.search(
        rf'^{re.escape(name)}==([^\s;#]+)', requirements, re.MULTILINE
    )
    if match is None:
        raise SetupError(f'requirements.txt does not pin {name}.')
    return match.group(1)


def missing_prerequisites(root: Path, disk_gb: float) -> list[str]:
    """Return one sentence for each thing that has to be there beforehand."""
    sentences = []
    version = '.'.join(map(str, sys.version_info[:2]))
    implementation = platform.python_implementation()
    if sys.version_info < (3, 11) or implementation != 'CPython':
        sentences.append(
            f'CPython 3.11 or newer is needed, this is {implementation} '
            f'{version}: name another one, as in `make test '
            'PYTHON=python3.11`.'
        )
    if not cxx_compiler():
        sentences.append(
            'A C++ compiler is needed to build mmcv, and none was found '
            '(CXX, c++, g++, clang++): install one, on Debian or Ubuntu with '
            '`apt install g++`.'
        )
    if not Path(sysconfig.get_paths()['include'], 'Python.h').exists():
        sentences.append(
            f'The headers of Python {version} (Python.h) are needed to build '
            'mmcv: install them, on Debian or Ubuntu with `apt install '
            f'python{version}-dev`.'
        )
    if importlib.util.find_spec('ensurepip') is None:
        sentences.append(
            'This Python cannot make virtual environments (no ensurepip): on '
            f'Debian or Ubuntu `apt install python{version}-venv` helps.'
        )
    free = shutil.disk_usage(root).free / 1e9
    if free < disk_gb:
        sentences.append(
            f'About {disk_gb:.0f} GB of free disk are needed in {root}, '
            f'{free:.0f} GB are left.'
        )
    return sentences


def cxx_compiler() -> str:
    """Return the C++ compiler to build with, empty if there is none."""
    named = os.environ.get('CXX', '').split()[:1]
    for name in named or ['c++', 'g++', 'clang++']:
        if shutil.which(name):
            return os.environ.get('CXX') or name
    return ''


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Return where built wheels are kept for this user's other checkouts."""
    base = environ.get('XDG_CACHE_HOME', '')
    if not os.path.isabs(base):  # the XDG specification says to ignore it
        base = os.path.join(os.path.expanduser('~'), '.cache')
    return Path(base, 'sift_mm', 'wheels')


def wheel_key(version: str, found: Found) -> str:
    """Name a wheel of mmcv by all that its compiled ops depend on."""
    key = (
        f'mmcv-{version}_torch-{found.torch}_{found.python}_'
        f'{platform.machine()}_{found.device}'
    )
    return re.sub(r'[^\w.+-]+', '-', key)


def serves(installed: str, wanted: str) -> bool:
    """Whether a wheel of one key does where that of another is wanted.

    One with CUDA ops also has the CPU ops: hiding the GPU is no reason to
    build again.
    """
    stem, _, device = wanted.rpartition('_')
    return installed == wanted or (
        device == 'cpu' and installed.startswith(f'{stem}_cuda')
    )


def usable_wheel(folder: Path) -> Path | None:
    """Return the wheel in a folder that is whole and has the compiled ops."""
    for path in sorted(folder.glob('*.whl')):
        try:
            with zipfile.ZipFile(path) as wheel:
                names = wheel.namelist()
                if wheel.testzip() is None and any(
                    re.match(r'mmcv/_ext\..*so$', n) for n in names
                ):
                    return path
        except (OSError, zipfile.BadZipFile):
            pass
    return None


def keep(built: Path, folder: Path) -> Path:
    """Put a finished wheel into the cache: it appears there whole or not.

    Raises:
        SetupError: If the cache cannot be written.
    """
    target = folder / built.name
    partial = folder / f'{built.name}.{os.getpid()}.partial'
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(built, partial)
        os.replace(partial, target)
    except OSError as error:
        raise SetupError(
            f'The built mmcv cannot be kept in {folder} ({error.strerror}): '
            'name another cache folder in XDG_CACHE_HOME.'
        ) from error
    finally:
        if partial.exists():
            partial.unlink()
    return target


def inputs_hash(root: Path, found: Found) -> str:
    """Hash what decides about the environment, to see when it is outdated."""
    digest = hashlib.sha256()
    for name in (*REQUIREMENTS, 'pyproject.toml'):
        digest.update((root / name).read_bytes())
    # The editable install points at the checkout: a moved one needs another.
    digest.update(f'{root}|{found.python}|{found.torch}'.encode())
    return digest.hexdigest()


def read_stamp(path: Path) -> dict[str, str]:
    """Return what the last successful set-up left; empty if none did."""
    try:
        stamp = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(path: Path, stamp: Mapping[str, str]) -> None:
    """Leave word of a successful set-up, whole or not at all."""
    partial = path.with_suffix('.partial')
    partial.write_text(json.dumps(stamp, indent=2))
    os.replace(partial, path)


def is_ready(root: Path, found: Found, stamp: Mapping[str, str]) -> bool:
    """Whether nothing is left to do."""
    version = pinned(MMCV, (root / REQUIREMENTS[0]).read_text())
    return (
        not found.error
        and found.mmcv == version
        and stamp.get('inputs') == inputs_hash(root, found)
        and serves(stamp.get('mmcv', ''), wheel_key(version, found))
    )


def run_logged(
    what: str,
    command: Sequence[str],
    log: Path,
    environ: Mapping[str, str] | None = None,
    progress: Callable[[], str] = str,
    period: float = 60,
) -> None:
    """Run a command, its output in a log, and say each minute that it runs.

    Args:
        what: The step's name in messages.
        command: Program and arguments.
        log: The file that its output is appended to.
        environ: Its environment, by default this process's.
        progress: Returns how far it is, to be said beside the time.
        period: Seconds between two of these lines.

    Raises:
        SetupError: If it fails; the end of its output was printed then.
    """
    started = time.monotonic()
    with log.open('ab') as stream:
        stream.write(f'\n$ {" ".join(command)}\n'.encode())
        stream.flush()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environ,
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                try:
                    process.wait(period)
                except subprocess.TimeoutExpired:
                    minutes = (time.monotonic() - started) / 60
                    say(f'  {minutes:.0f} min {progress()}'.rstrip())
        finally:
            if process.poll() is None:  # interrupted: its compilers too
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
    if process.returncode:
        lines = log.read_text(errors='replace').splitlines()[-20:]
        print('\n'.join(lines), file=sys.stderr)
        raise SetupError(
            f'{what[0].upper()}{what[1:]} failed (exit status '
            f'{process.returncode}); the whole log is {log}.'
        )


def compiled(folder: Path) -> str:
    """Say how many files of the build below a folder are compiled."""
    objects = sum(1 for _ in folder.rglob('*.o'))
    for plan in folder.rglob('build.ninja'):
        total = plan.read_text().count('.o: compile')
        return f'({objects} of {total} files compiled)'
    return ''


class Environment:
    """The virtual environment of a checkout.

    Args:
        root: The checkout.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / '.venv'
        self.python = self.folder / 'bin' / 'python'
        self.log = self.folder / 'setup.log'
        self.stamp = self.folder / 'setup.json'
        self.requirements = (root / REQUIREMENTS[0]).read_text()
        self.mmcv = pinned(MMCV, self.requirements)

    def set_up(self) -> None:
        """Bring it up to date.

        Raises:
            SetupError: If that cannot be done.
        """
        found = probe(self.python) if self.python.exists() else None
        stamp = read_stamp(self.stamp)
        if found is not None and is_ready(self.root, found, stamp):
            say('.venv is up to date')
            return
        missing = missing_prerequisites(
            self.root, 3 if found and found.torch else DISK_GB
        )
        if missing:
            raise SetupError('\n'.join(missing))

        if found is None:
            self.create()
        self.log.write_text('')
        found = self.install_torch()
        wanted = wheel_key(self.mmcv, found)
        key = stamp.get('mmcv', '')
        # One that somebody installed by hand has no stamp, but may be good.
        good = serves(key, wanted) or not (key or found.error)
        source = ''
        if found.mmcv != self.mmcv or not good:
            source = self.install_mmcv(found)
            key = wanted
        self.install_rest()

        found = probe(self.python, run_op=True)
        while found.error and source != 'build':
            say(
                f'mmcv {self.mmcv} does not work with torch {found.torch}: '
                f'{found.error}; installing it anew'
            )
            source = self.install_mmcv(found, use_cache=not source)
            key = wanted
            found = probe(self.python, run_op=True)
        if found.error:
            raise SetupError(
                f'mmcv {self.mmcv} was built against torch {found.torch} but '
                f'does not work ({found.error}); the log is {self.log}.'
            )
        write_stamp(
            self.stamp,
            {
                'inputs': inputs_hash(self.root, found),
                'mmcv': key or wanted,
            },
        )
        say('.venv is ready')

    def create(self) -> None:
        """Make it anew with the Python that runs this."""
        say(f'making .venv with Python {platform.python_version()}')
        done = subprocess.run(
            [sys.executable, '-m', 'venv', '--clear', str(self.folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            raise SetupError(
                f'`{sys.executable} -m venv .venv` failed: '
                f'{" ".join(done.stdout.split())}'
            )

    def pip(
        self,
        what: str,
        *arguments: str,
        environ: Mapping[str, str] | None = None,
        progress: Callable[[], str] = str,
    ) -> None:
        """Run pip in it, `environ` on top of this process's environment."""
        # For ninja, without which extensions compile one file at a time.
        path = [str(self.python.parent), os.environ.get('PATH', os.defpath)]
        run_logged(
            what,
            [str(self.python), '-m', 'pip', *arguments],
            self.log,
            {
                **os.environ,
                'PATH': os.pathsep.join(path),
                'PIP_DISABLE_PIP_VERSION_CHECK': '1',
                **(environ or {}),
            },
            progress,
        )

    def install_torch(self) -> Found:
        """Install torch and the build tools that mmcv needs beside it."""
        packages = [
            f'{name}=={pinned(name, self.requirements)}'
            for name in ('setuptools', 'torch', 'torchvision')
        ]
        say(f'installing {" and ".join(packages[1:])}; log: {self.log}')
        self.pip('installing the build tools', 'install', *BUILD_TOOLS)
        # The constraints keep torchvision from bringing another NumPy.
        self.pip(
            'installing torch',
            'install',
            *packages,
            '-c',
            str(self.root / REQUIREMENTS[0]),
        )
        found = probe(self.python)
        if not found.torch:
            raise SetupError(
                f'torch does not import in .venv ({found.error}): remove '
                'that folder and call this again.'
            )
        return found

    def install_mmcv(self, found: Found, use_cache: bool = True) -> str:
        """Install mmcv with ops that fit the torch that was found.

        Args:
            found: The environment.
            use_cache: Whether a wheel that was built before will do.

        Returns:
            Where it came from: `cache` or `build`.
        """
        key = wheel_key(self.mmcv, found)
        kept = usable_wheel(cache_folder() / key) if use_cache else None
        if kept:
            say(f'installing the mmcv that was built before: {kept}')
        wheel = kept or self.build_mmcv(found, key)
        # Its dependencies come with the rest.
        self.pip(
            'installing mmcv',
            'install',
            '--no-deps',
            '--force-reinstall',
            str(wheel),
        )
        return 'cache' if kept else 'build'

    def build_mmcv(self, found: Found, key: str) -> Path:
        """Compile mmcv and keep its wheel in the cache."""
        cores = len(os.sched_getaffinity(0))
        cuda = found.device != 'cpu'
        if cuda and not (shutil.which('nvcc') or os.environ.get('CUDA_HOME')):
            raise SetupError(
                'torch sees a CUDA device, but there is no nvcc to build '
                "mmcv's CUDA ops with: install the CUDA toolkit that torch "
                f'{found.torch} names, or hide the device with '
                'CUDA_VISIBLE_DEVICES= to stay on the CPU.'
            )
        say(
            f'building mmcv {self.mmcv} against torch {found.torch}: about '
            f'{max(2, BUILD_CORE_MINUTES // cores)} minutes on {cores} cores'
            f'{", more for the CUDA ops" * cuda}; log: {self.log}'
        )
        memory_gb = (
            os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9
        )
        jobs = max(1, min(cores, int(memory_gb / (4 if cuda else 2))))
        with tempfile.TemporaryDirectory(
            prefix='sift_mm-', ignore_cleanup_errors=True
        ) as tmp:
            self.pip(
                'building mmcv',
                'wheel',
                '--no-deps',
                '--no-build-isolation',
                '--no-cache-dir',
                f'--no-binary={MMCV}',
                f'--wheel-dir={tmp}/wheel',
                f'{MMCV}=={self.mmcv}',
                environ={
                    'CXX': cxx_compiler(),
                    'MAX_JOBS': os.environ.get('MAX_JOBS', str(jobs)),
                    'MMCV_WITH_OPS': '1',
                    'TMPDIR': tmp,
                },
                progress=lambda: compiled(Path(tmp)),
            )
            built = usable_wheel(Path(tmp, 'wheel'))
            if built is None:
                raise SetupError(
                    'mmcv was built without its compiled ops; the log is '
                    f'{self.log}.'
                )
            return keep(built, cache_folder() / key)

    def install_rest(self) -> None:
        """Install all else, and the checkout itself."""
        say('installing the other libraries')
        files = [str(self.root / name) for name in REQUIREMENTS]
        self.pip(
            'installing the libraries',
            'install',
            *(part for name in files for part in ('-r', name)),
        )
        self.pip(
            'installing sift_mm',
            'install',
            '--no-deps',
            '--no-build-isolation',
            '-e',
            str(self.root),
        )
        found = probe(self.python)
        if found.cv2_error:
            # mmdet brings OpenCV twice, in one folder, and a machine without
            # a desktop lacks the libraries of the one that opens windows.
            say(
                f'OpenCV does not import ({found.cv2_error}): taking the '
                'build that opens no windows'
            )
            name = 'opencv-python-headless'
            self.pip(
                'installing OpenCV',
                'install',
                '--no-deps',
                '--force-reinstall',
                f'{name}=={pinned(name, self.requirements)}',
            )


def main() -> int:
    """Set up, or say in one sentence why not."""
    argparse.ArgumentParser(
        description=(__doc__ or '').splitlines()[0]
    ).parse_args()
    # Unwind on termination too, so that no build goes on without us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        Environment(ROOT).set_up()
    except (SetupError, OSError) as error:
        print(f'[setup] {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            '[setup] stopped; another call goes on from here', file=sys.stderr
        )
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
