"""The allocator keeps what is freed, in our commands alone."""

import subprocess
import sys

import pytest

from sift_mm.kernels import keep_freed_memory

PROBE = """
import resource, torch, sift_mm
from sift_mm.cli.entry import entry_point

def faults(argv=None):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(64 << 18)  # 64 MiB, of 16,384 pages.
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults(), entry_point(faults)([]))
"""
VARIABLES = {
    'MALLOC_MMAP_MAX_': '65536',
    'MALLOC_TRIM_THRESHOLD_': '131072',
    'GLIBC_TUNABLES': 'glibc.malloc.mmap_threshold=131072',
    'LD_PRELOAD': 'libjemalloc.so.2',
}


def test_commands_keep_freed_memory_and_an_import_does_not(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    found = subprocess.run(
        [sys.executable, '-c', PROBE],
        capture_output=True,
        text=True,
        check=True,
    )
    imported, command = map(int, found.stdout.split())
    # Pages may be huge, 512 to one.
    assert imported >= 10 * 64 / 2
    assert command <= imported / 5


@pytest.mark.parametrize('name', VARIABLES)
def test_a_setting_of_the_users_is_left_alone(monkeypatch, name):
    monkeypatch.setenv(name, VARIABLES[name])
    assert not keep_freed_memory()
