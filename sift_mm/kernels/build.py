"""Compile and load the kernels.

The machine's compiler builds the C++ sources once for its CPU, and the user's
cache keeps the library: no wheel has to fit every CPU. If the build fails,
``why_unavailable`` returns the reason, and layers run dense.
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
from typing import Any

import torch
from torch import Tensor

SOURCES = Path(__file__).parent / 'csrc'

#: Flags by PyTorch's name of the CPU (``ATEN_CPU_CAPABILITY`` overrides the
#: name for PyTorch and for the kernels). Other CPUs get portable, slow code.
FLAGS = {
    'AVX2': ('-mavx2', '-mfma'),
    'AVX512': ('-mavx512f', '-mavx512dq', '-mavx512vl', '-mavx512bw'),
}
COMMON_FLAGS = ('-O3', '-std=gnu++17', '-fopenmp', '-fPIC')
#: Time limits of the compiler in seconds: for --version and for a build.
VERSION_LIMIT, COMPILE_LIMIT = 20, 900
#: Kernels that return an int64; the others return nothing or a status.
COUNTING = ('sift_pattern', 'sift_nonzeros_outside')
#: Prefix of the folders that compilers work in.
_BUILDING = 'building-'


class KernelsUnavailable(RuntimeError):
    """Error of kernels that cannot be built or loaded, with the reason."""


class FolderNotTrusted(KernelsUnavailable):
    """Error of a cache folder that other users can write to."""


def instruction_set() -> str:
    """Return the instruction set to compile for."""
    found = torch.backends.cpu.get_cpu_capability()
    return found if found in FLAGS else 'portable'


def cache_folder() -> Path:
    """Return the folder of compiled kernels: ``SIFT_MM_CACHE``, or the user's.

    Raises:
        KernelsUnavailable: If there is no home folder.
    """
    chosen = os.environ.get('SIFT_MM_CACHE')
    # The XDG specification says to ignore a relative path.
    base = Path(os.environ.get('XDG_CACHE_HOME') or '.')
    try:
        if chosen:
            return Path(chosen).expanduser().absolute()
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
    """Find the compiler of ``CXX``, or one with a usual name."""
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
    """Run commands in parallel, and return their output.

    Args:
        *commands: Command lines of the compiler.
        limit: Time limit in seconds.

    Raises:
        KernelsUnavailable: If a command cannot be run, fails, or exceeds the
            limit.
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
    """Open a cached library, if it is whole and no other user may write it.

    The digest is at the end of the file. The library is loaded from this
    descriptor, so that nobody can replace the file after the check.

    Returns:
        int: The descriptor; None if the library has to be built.
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


# As OpenSSH checks its keys.
def find_flaw(folder: Path) -> str:
    """Return why other users could change files in a folder, or ''.

    The folder and its parents have to belong to this user or to root, and no
    other user may write to them. A parent may have the sticky bit, like
    ``/tmp``, where only its owner can replace an entry.

    Args:
        folder: An existing folder without symbolic links.

    Raises:
        OSError: If the status of a folder cannot be read.
    """
    for place in (folder, *folder.parents):
        status = place.lstat()
        is_shared = place != folder and status.st_mode & stat.S_ISVTX
        flaw = find_flaw_of(status, bool(is_shared))
        if flaw:
            return f'{place} {flaw}'
    return ''


def find_flaw_of(status: os.stat_result, is_sticky: bool = False) -> str:
    """Return why other users could change one file or folder, or ''."""
    if status.st_uid not in (0, os.geteuid()):
        return f'belongs to another user (number {status.st_uid})'
    is_writable = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if is_writable and not (is_sticky and status.st_uid == 0):
        return f'can be written by others (mode {status.st_mode & 0o7777:o})'
    return ''


def build(folder: Path | None = None) -> Path:
    """Compile the kernels for this CPU, unless the cache has them.

    Processes that start together compile in separate folders, and the library
    gets its name when it is whole. ``SIFT_MM_KERNEL_FLAGS`` adds compiler
    flags, such as those of a sanitizer.

    Args:
        folder: Cache folder; :func:`cache_folder` by default.

    Returns:
        Path of the shared library.

    Raises:
        KernelsUnavailable: If there is no compiler, the compiler fails, or
            the library cannot be written.
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
    # It stays open: the loader knows a library by its name, and a number that
    # is free again would name another one.
    opened = f'/proc/self/fd/{descriptor}'
    return ctypes.CDLL(opened if os.path.exists(opened) else str(path))


def _printable(error: Exception) -> str:
    """Return a message with undecodable bytes escaped."""
    return str(error).encode(errors='backslashreplace').decode()


def library() -> ctypes.CDLL:
    """Load the kernels; compile them first if needed.

    Raises:
        KernelsUnavailable: If they cannot be built or loaded.
    """
    loaded = _load()
    if isinstance(loaded, str):
        raise KernelsUnavailable(loaded)
    return loaded


@torch.compiler.assume_constant_result
def why_unavailable() -> str | None:
    """Return why sparse execution is not available, or None if it is."""
    loaded = _load()
    return loaded if isinstance(loaded, str) else None


def call(name: str, *arguments: Any) -> int:
    """Call a kernel, and return its status or count.

    Args:
        name: Name of the C function.
        *arguments: Tensors go by address, None as a null pointer, structures
            by reference, integers as int64 and floats as double.
    """
    function = getattr(library(), name)
    if name in COUNTING:
        function.restype = ctypes.c_int64
    return function(*map(_to_c, arguments))


def _to_c(value: Any) -> Any:
    match value:
        case int():
            return ctypes.c_int64(value)
        case Tensor():
            return ctypes.c_void_p(value.data_ptr())
        case ctypes.Structure():
            return ctypes.byref(value)
        case float():
            return ctypes.c_double(value)
    return value


def int64_fields(names: str) -> list[tuple[str, Any]]:
    """Return the fields of a ``ctypes.Structure`` of int64 numbers."""
    return [(name, ctypes.c_int64) for name in names.split()]
