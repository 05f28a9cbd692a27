"""Memory and threads of a process that loads the kernels."""

import pytest

from helpers.runs import LIBRARIES, run_without
from sift_mm.kernels import keep_freed_memory

PROBE = """
import resource, torch, sift_mm
from sift_mm.cli.entry import entry_point
from sift_mm.kernels import why_unavailable

def faults(argv=None):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(64 << 18)  # 64 MiB, of 16,384 pages.
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults(), entry_point(faults)([]))
assert why_unavailable() is None
names = open('/proc/self/maps').read().splitlines()
files = {line.split()[-1].split('/')[-1] for line in names}
print(sum(f.startswith(('libgomp', 'libomp', 'libiomp')) for f in files))
"""
VARIABLES = {
    'MALLOC_MMAP_MAX_': '65536',
    'MALLOC_TRIM_THRESHOLD_': '131072',
    'GLIBC_TUNABLES': 'glibc.malloc.mmap_threshold=131072',
    'LD_PRELOAD': 'libjemalloc.so.2',
}


@pytest.fixture(scope='module')
def probed() -> list[int]:
    """Run the probe with the allocator's defaults and the user's kernels."""
    changed = {*VARIABLES, 'SIFT_MM_CACHE', 'SIFT_MM_KERNEL_FLAGS'}
    said = run_without(LIBRARIES, PROBE, unset=changed)
    return [int(number) for number in said.split()]


def test_commands_keep_freed_memory_and_an_import_does_not(probed):
    imported, command, _ = probed
    # Pages may be huge, 512 to one.
    assert imported >= 10 * 64 / 2
    assert command <= imported / 5


def test_one_thread_pool_with_torch(probed):
    assert probed[2] == 1


@pytest.mark.parametrize('name', VARIABLES)
def test_a_setting_of_the_users_is_left_alone(monkeypatch, name):
    monkeypatch.setenv(name, VARIABLES[name])
    assert not keep_freed_memory()
