"""Build mmcv against the installed torch, once for all checkouts.

mmcv's ops fit one torch only. Nearly all of their compile time is PyTorch's
headers, so gcc parses them once, into a precompiled header. The user's cache
keeps the wheel under a name of all its dependencies.
"""

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import torch

PINS = Path(__file__).resolve().parent.parent / 'requirements.txt'
MMCV = re.findall(r'(?m)^onedl-mmcv==(\S+)', PINS.read_text())[0]
GPU = torch.cuda.is_available() or os.environ.get('FORCE_CUDA') == '1'
INSTALLED = Path(sys.prefix, 'mmcv.txt')  # key of the installed one
# gcc uses a header only under the flags it was compiled with, -O3 included.
# CFLAGS replaces the flags of Python's own build.
CFLAGS = os.environ.get('CFLAGS', '-DNDEBUG -fwrapv -O3 -Wall')
TORCH_FLAGS = '-DTORCH_API_INCLUDE_EXTENSION_H -DTORCH_EXTENSION_NAME=_ext'


def cache_folder(device: str = '') -> Path:
    """Return the cache folder of the wheel for this torch and `device`."""
    base = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    python = 'cp{}{}'.format(*sys.version_info)
    key = f'mmcv-{MMCV}_torch-{torch.__version__}_{python}'
    key = re.sub(r'[^\w.+-]+', '-', f'{key}_{platform.machine()}_{device}')
    return Path(base, 'sift_mm', 'wheels', key).expanduser()


def device_name() -> str:
    """Return the device that the ops are built for, with its capabilities."""
    if not GPU:
        return 'cpu'
    count = torch.cuda.device_count()
    archs = {torch.cuda.get_device_capability(i) for i in range(count)}
    named = ' '.join(sorted(f'{major}.{minor}' for major, minor in archs))
    chosen = os.environ.get('TORCH_CUDA_ARCH_LIST') or named or 'all'
    return f'cuda{torch.version.cuda}-sm{chosen}'


def check() -> None:
    """Exit with status 1 unless this torch's mmcv is installed and works.

    The device is tried, not compared: CUDA ops serve where the GPU is
    hidden, and CPU ops fail where it is visible.
    """
    name = INSTALLED.read_text() if INSTALLED.exists() else ''
    fits = name.startswith(cache_folder().name)
    if not fits or version('onedl-mmcv') != MMCV:
        sys.exit('The installed mmcv is not the one for this torch.')
    from mmcv import _ext

    twins, scores = torch.tensor([[0.0, 0, 9, 9]] * 2), torch.ones(2)
    for device in ['cpu', 'cuda'][: 1 + torch.cuda.is_available()]:
        kept = _ext.nms(twins.to(device), scores.to(device), 0.5, 0)
        if len(kept) != 1:
            sys.exit(f'nms on {device} keeps {len(kept)} of two equal boxes.')


def precompile_header(folder: Path) -> dict[str, str]:
    """Compile PyTorch's header; return the setting with which gcc uses it."""
    compiler = (os.environ.get('CXX') or 'c++').split()
    named = subprocess.run([*compiler, '--version'], capture_output=True)
    if GPU or b'clang' in named.stdout:  # other flags, another form
        return {}
    header = folder / 'pch.h'
    header.write_text('#include <torch/types.h>\n#include <vector>\n')
    include = Path(torch.__file__).parent / 'include'
    command = [
        *(*compiler, '-x', 'c++-header', str(header)),
        *('-o', f'{header}.gch'),
        *f'{CFLAGS} -fPIC -std=c++17 {TORCH_FLAGS}'.split(),
        *(f'-I{include}', f'-I{include / "torch/csrc/api/include"}'),
        f'-I{sysconfig.get_paths()["include"]}',
    ]
    if subprocess.run(command).returncode:
        print('The header does not compile: mmcv takes some 20 minutes.')
        return {}
    return {'CFLAGS': f'{CFLAGS} -include {header} -Winvalid-pch'}


def build(kept: Path) -> None:
    """Build the wheel in a temporary folder and move it into the cache."""
    if GPU and not (shutil.which('nvcc') or os.environ.get('CUDA_HOME')):
        sys.exit(
            'There is no nvcc to build the CUDA ops with: install the CUDA '
            f'toolkit that torch {torch.__version__} names, or hide the GPU '
            'with CUDA_VISIBLE_DEVICES= to stay on the CPU.'
        )
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9
    jobs = min(len(os.sched_getaffinity(0)), int(memory / (4 if GPU else 2)))
    with tempfile.TemporaryDirectory(dir=sys.prefix) as folder:
        defaults = {'MAX_JOBS': str(max(1, jobs))}
        settings = {
            **precompile_header(Path(folder)),
            'MMCV_WITH_OPS': '1',
            'TMPDIR': folder,
            # ninja lies there; without it, files are compiled one by one
            'PATH': f'{sys.prefix}/bin{os.pathsep}{os.environ["PATH"]}',
        }
        command = [
            *(sys.executable, '-m', 'pip', 'wheel', '-v', '--no-deps'),
            *('--no-build-isolation', '--no-cache-dir'),
            *('--no-binary=onedl-mmcv', f'--wheel-dir={folder}'),
        ]
        subprocess.run(
            [*command, f'onedl-mmcv=={MMCV}'],
            env={**defaults, **os.environ, **settings},
            check=True,
        )
        wheel = next(Path(folder).glob('*.whl'))
        partial = kept / f'{wheel.name}.{os.getpid()}'
        shutil.copyfile(wheel, partial)
        partial.replace(kept / wheel.name)  # whole or not at all


def main() -> None:
    """Install the wheel from the cache; build it first if it is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--check', action='store_true', help='try it only')
    parser.add_argument('--fresh', action='store_true', help='build it anew')
    args = parser.parse_args()
    if args.check:
        return check()
    kept = cache_folder(device_name())
    kept.mkdir(parents=True, exist_ok=True)
    wheels = [*filter(zipfile.is_zipfile, kept.glob('*.whl'))]
    if args.fresh or not wheels:
        build(kept)
    wheel = next(kept.glob('*.whl'))
    pip = [sys.executable, '-m', 'pip', 'install', '--no-deps']
    subprocess.run([*pip, '--force-reinstall', wheel], check=True)
    INSTALLED.write_text(kept.name)


if __name__ == '__main__':
    main()
