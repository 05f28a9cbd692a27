"""Compile and load the kernels.

The machine's own compiler builds the C++ sources once for a CPU; the user's
cache keeps them, so that no wheel has to fit every CPU. Where this cannot be
done, ``library`` says why in a sentence, and layers run dense.
"""

import ctypes
import hashlib
import os
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
import time
import warnings
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from .trust import find_flaw, find_flaw_of

SOURCES = Path(__file__).parent / 'csrc'

#: Flags by PyTorch's name of the CPU (``ATEN_CPU_CAPABILITY`` overrides
#: it for both); others get portable code, correct but slow.
FLAGS = {
    'AVX2': ('-mavx2', '-mfma'),
    'AVX512': ('-mavx512f', '-mavx512dq', '-mavx512vl', '-mavx512bw'),
}
COMMON_FLAGS = ('-O3', '-std=gnu++17', '-fopenmp', '-fPIC')
#: Seconds that a compiler may take to name its version, and to compile.
VERSION_LIMIT, COMPILE_LIMIT = 20, 900
#: First letters of a folder that is compiled in.
_BUILDING = 'building-'


class KernelsUnavailable(RuntimeError):
    """The kernels cannot be built or loaded here; says why."""


class FolderNotTrusted(KernelsUnavailable):
    """Other users could put files into the cache."""


def instruction_set() -> str:
    """Return the instruction set to compile for."""
    found = torch.backends.cpu.get_cpu_capability()
    return found if found in FLAGS else 'portable'


def cache_folder() -> Path:
    """Return the folder of compiled kernels: ``SIFT_MM_CACHE``, or the user's.

    Raises:
        KernelsUnavailable: If there is no home folder.
    """
    named = os.environ.get('SIFT_MM_CACHE')
    # A relative one is to be ignored, by its specification.
    base = Path(os.environ.get('XDG_CACHE_HOME') or '.')
    try:
        if named:
            return Path(named).expanduser().absolute()
        if not base.is_absolute():
            base = Path.home() / '.cache'
    except RuntimeError as error:
        raise KernelsUnavailable(
            f'there is no home folder for the compiled kernels ({error}); set '
            'SIFT_MM_CACHE to a folder that can be written'
        ) from error
    return base.absolute() / 'sift_mm'


def _words(variable: str) -> list[str]:
    """Split an environment variable as a shell does."""
    text = os.environ.get(variable, '')
    try:
        return shlex.split(text)
    except ValueError as error:
        raise KernelsUnavailable(
            f'{variable}={text!r} cannot be read: {error}'
        ) from error


def _compiler() -> list[str]:
    """Find the compiler that ``CXX`` names, or one of the usual names."""
    chosen = _words('CXX')
    names = chosen[:1] or ['c++', 'g++', 'clang++']
    for name in names:
        path = shutil.which(name)
        if path:
            return [path, *chosen[1:]]
    if chosen:
        raise KernelsUnavailable(
            f'the compiler cannot be run: CXX names {names[0]!r}, which is no '
            'program'
        )
    raise KernelsUnavailable(
        f'no C++ compiler was found (looked for {", ".join(names)}); install '
        'g++ or set CXX'
    )


def _run(*commands: list[str], limit: float) -> str:
    """Run compilers side by side, and return their output.

    Raises:
        KernelsUnavailable: If one cannot be run, fails, or takes more seconds
            than the limit.
    """
    running: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            running.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, 'LC_ALL': 'C'},
                    start_new_session=True,
                )
            )
        outputs = [
            process.communicate(timeout=limit)[0].decode(errors='replace')
            for process in running
        ]
    except OSError as error:
        raise KernelsUnavailable(
            f'the compiler cannot be run: {error}'
        ) from error
    except subprocess.TimeoutExpired as error:
        raise KernelsUnavailable(
            f'the compiler {commands[0][0]} has not ended in {limit} seconds'
        ) from error
    finally:
        for process in running:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    for process, output in zip(running, outputs, strict=True):
        if process.returncode:
            lines = output.strip().splitlines() or ['no message']
            first = next((e for e in lines if 'error' in e), lines[-1])
            raise KernelsUnavailable(f'the compiler failed: {first}')
    return ''.join(outputs)


def _open_whole(path: Path) -> int | None:
    """Open a kept library, if it is whole and nobody else may write it.

    Its digest ends it. What was checked is loaded by the number of the open
    file, whatever has the name by then.

    Returns:
        int: The open file; None if it has to be built.
    """
    try:
        # A pipe without a writer would keep this waiting.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(path, flags)
    except OSError:
        return None
    status = os.fstat(descriptor)
    content = b''
    if stat.S_ISREG(status.st_mode) and not find_flaw_of(status):
        with open(descriptor, 'rb', closefd=False) as file:
            content = file.read()
    if hashlib.sha256(content[:-32]).digest() == content[-32:]:
        return descriptor
    os.close(descriptor)
    return None


def build(folder: Path | None = None) -> Path:
    """Compile the kernels for this CPU, unless that was done before.

    Processes that start at once may compile more than once, each in a folder
    of its own; a file gets its name when it is whole.
    ``SIFT_MM_KERNEL_FLAGS`` is added to the flags, such as those of a
    sanitizer.

    Args:
        folder: Where the library is kept; by default :func:`cache_folder`.

    Returns:
        The shared library.

    Raises:
        KernelsUnavailable: If there is no compiler, it fails, or the library
            cannot be kept.
    """
    folder = folder or cache_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = folder.resolve()
        flaw = find_flaw(folder)
        if flaw:
            raise FolderNotTrusted(
                f'compiled kernels are not kept in {folder}: {flaw}; make it '
                'your own alone, or set SIFT_MM_CACHE to such a folder'
            )
        return _build_in(folder)
    except OSError as error:
        raise KernelsUnavailable(
            f'the compiled kernels could not be kept in {folder} '
            f'({error.strerror or error}); set SIFT_MM_CACHE to a folder that '
            'can be written'
        ) from error


def _build_in(folder: Path) -> Path:
    compiler = _compiler()
    flags = (
        *COMMON_FLAGS,
        *FLAGS.get(instruction_set(), ()),
        *_words('SIFT_MM_KERNEL_FLAGS'),
    )
    key = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        key.update(path.name.encode() + path.read_bytes())
    version = _run([*compiler, '--version'], limit=VERSION_LIMIT)
    key.update(repr((flags, version)).encode())
    name = f'kernels-{instruction_set().lower()}-{key.hexdigest()[:16]}.so'
    target = folder / name
    found = _open_whole(target)
    if found is not None:
        os.close(found)
        return target
    _remove_abandoned(folder)
    with tempfile.TemporaryDirectory(
        prefix=_BUILDING, dir=folder, ignore_cleanup_errors=True
    ) as made:
        library = Path(made) / name
        _compile([*compiler, *flags], library)
        if not library.is_file():
            raise KernelsUnavailable('the compiler failed: it made no library')
        with library.open('ab') as file:
            file.write(hashlib.sha256(library.read_bytes()).digest())
        library.chmod(0o755)
        os.replace(library, target)
    return target


def _compile(command: list[str], target: Path) -> None:
    sources = sorted(SOURCES.glob('*.cpp'))
    objects = [str(target.parent / f'{path.stem}.o') for path in sources]
    _run(
        *(
            [*command, '-c', str(source), '-o', made]
            for source, made in zip(sources, objects, strict=True)
        ),
        limit=COMPILE_LIMIT,
    )
    _run(
        [*command, '-shared', *objects, '-o', str(target)], limit=COMPILE_LIMIT
    )


def _remove_abandoned(folder: Path) -> None:
    """Remove the folders of compilations that were killed."""
    for made in folder.glob(f'{_BUILDING}*'):
        if time.time() - made.lstat().st_mtime > 2 * COMPILE_LIMIT:
            shutil.rmtree(made, ignore_errors=True)


@cache
def _load() -> ctypes.CDLL | str:
    try:
        try:
            return _load_from(build())
        except FolderNotTrusted as error:
            warnings.warn(
                f'{_printable(error)}. They are compiled for this process '
                'alone.',
                stacklevel=2,
            )
            with tempfile.TemporaryDirectory(prefix='sift_mm-') as private:
                return _load_from(build(Path(private)))
    except KernelsUnavailable as error:
        return _printable(error)
    except OSError as error:
        return (
            f'the compiled kernels could not be loaded ({_printable(error)}); '
            'set SIFT_MM_CACHE to another folder'
        )


def _load_from(path: Path) -> ctypes.CDLL:
    descriptor = _open_whole(path)
    if descriptor is None:
        raise KernelsUnavailable(f'{path} was changed after it was compiled')
    try:
        opened = f'/proc/self/fd/{descriptor}'
        return ctypes.CDLL(opened if os.path.exists(opened) else str(path))
    finally:
        os.close(descriptor)


def _printable(error: Exception) -> str:
    """Return a message without bytes that no terminal shows."""
    return str(error).encode(errors='backslashreplace').decode()


def library() -> ctypes.CDLL:
    """Load the kernels, after compiling them where need be.

    Raises:
        KernelsUnavailable: If they cannot be had here.
    """
    loaded = _load()
    if isinstance(loaded, str):
        raise KernelsUnavailable(loaded)
    return loaded


@torch.compiler.assume_constant_result
def why_unavailable() -> str | None:
    """Return why sparse execution is not available here, or None if it is."""
    loaded = _load()
    return loaded if isinstance(loaded, str) else None


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    """Return the address of a tensor's numbers, for a kernel."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
