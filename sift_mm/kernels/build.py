"""Compiling and loading the kernels.

The C++ sources are compiled by the machine's own compiler, once for a CPU,
and kept in the user's cache, so that no wheel has to fit every CPU. Where
that cannot be done, ``library`` says why in a sentence, and layers run dense.
"""

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

SOURCES = Path(__file__).parent / 'csrc'

#: Flags by what PyTorch says of the CPU (``ATEN_CPU_CAPABILITY`` overrides
#: it for both); others get portable code, correct but slow.
FLAGS = {
    'AVX2': ('-mavx2', '-mfma'),
    'AVX512': ('-mavx512f', '-mavx512dq', '-mavx512vl', '-mavx512bw'),
}
COMMON_FLAGS = ('-O3', '-std=gnu++17', '-fopenmp', '-fPIC')


class KernelsUnavailable(RuntimeError):
    """The kernels cannot be built or loaded here; says why."""


def instruction_set() -> str:
    """Name the instruction set that is compiled for."""
    found = torch.backends.cpu.get_cpu_capability()
    return found if found in FLAGS else 'portable'


def cache_folder() -> Path:
    """Folder of compiled kernels: ``SIFT_MM_CACHE``, else the user's."""
    base = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(os.environ.get('SIFT_MM_CACHE') or Path(base) / 'sift_mm')


def _compiler() -> list[str]:
    """Find the compiler, as ``CXX`` names it or the usual names."""
    names = [os.environ.get('CXX') or 'c++', 'g++', 'clang++']
    for name in names:
        program, *arguments = shlex.split(name)
        path = shutil.which(program)
        if path:
            return [path, *arguments]
    raise KernelsUnavailable(
        f'no C++ compiler was found (looked for {", ".join(names)}); install '
        'g++ or set CXX'
    )


def _run(*commands: list[str]) -> str:
    """Run the compiler, side by side; return what it prints."""
    try:
        running = [
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for command in commands
        ]
    except OSError as error:
        raise KernelsUnavailable(
            f'the compiler cannot be run: {error}'
        ) from error
    outputs = [process.communicate()[0] for process in running]
    for process, output in zip(running, outputs, strict=True):
        if process.returncode:
            lines = output.strip().splitlines() or ['no message']
            first = next((e for e in lines if 'error' in e), lines[-1])
            raise KernelsUnavailable(f'the compiler failed: {first}')
    return ''.join(outputs)


def _whole(path: Path) -> bool:
    """Whether a kept library is as it was written: its digest ends it."""
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(content[:-32]).digest() == content[-32:]


def build() -> Path:
    """Compile the kernels for this CPU, unless that was done before.

    Processes that start at once may compile more than once, each beside the
    target; what is renamed into place is whole. ``SIFT_MM_KERNEL_FLAGS`` is
    added to the flags, such as those of a sanitizer.

    Returns:
        The shared library.

    Raises:
        KernelsUnavailable: No compiler, or it failed.
    """
    sources = sorted(SOURCES.glob('*.cpp'))
    compiler = _compiler()
    flags = (
        *COMMON_FLAGS,
        *FLAGS.get(instruction_set(), ()),
        *shlex.split(os.environ.get('SIFT_MM_KERNEL_FLAGS') or ''),
    )
    key = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        key.update(path.name.encode() + path.read_bytes())
    key.update(repr((flags, _run([*compiler, '--version']))).encode())
    name = f'kernels-{instruction_set().lower()}-{key.hexdigest()[:16]}.so'
    target = cache_folder() / name
    if _whole(target):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            library = Path(folder) / name
            _compile([*compiler, *flags], sources, library)
            with library.open('ab') as file:
                file.write(hashlib.sha256(library.read_bytes()).digest())
            os.replace(library, target)
    except OSError as error:
        raise KernelsUnavailable(
            f'the compiled kernels could not be kept in {target.parent} '
            f'({error.strerror}); set SIFT_MM_CACHE to a folder that can be '
            'written'
        ) from error
    return target


def _compile(command: list[str], sources: list[Path], target: Path) -> None:
    objects = [str(target.parent / f'{path.stem}.o') for path in sources]
    _run(
        *(
            [*command, '-c', str(source), '-o', made]
            for source, made in zip(sources, objects, strict=True)
        )
    )
    _run([*command, '-shared', *objects, '-o', str(target)])


@cache
def _load() -> ctypes.CDLL | str:
    try:
        return ctypes.CDLL(str(build()))
    except KernelsUnavailable as error:
        return str(error)
    except OSError as error:
        return f'the compiled kernels could not be loaded ({error})'


def library() -> ctypes.CDLL:
    """Load the kernels, after compiling them where need be.

    Raises:
        KernelsUnavailable: They cannot be had here; says why.
    """
    loaded = _load()
    if isinstance(loaded, str):
        raise KernelsUnavailable(loaded)
    return loaded


@torch.compiler.assume_constant_result
def why_unavailable() -> str | None:
    """Say why sparse execution is not available here, or None if it is."""
    loaded = _load()
    return loaded if isinstance(loaded, str) else None


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    """Where a tensor's numbers lie, for a kernel; None is a null."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
