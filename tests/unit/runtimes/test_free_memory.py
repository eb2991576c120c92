"""Checks of free memory, and huge pages; those in a process of their own, as the heap persists."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from compressor.errors import UsageError
from compressor.runtimes import memory

SUPPORTED = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size").is_file()
SCRIPT = """
import numpy as np, sys
from compressor.runtimes.memory import huge_pages

def resident_kb():
    [line] = [line for line in open("/proc/self/status") if line.startswith("VmRSS")]
    return int(line.split()[1])

before = resident_kb()
with huge_pages(int(sys.argv[1])) as granted:
    unused = resident_kb() - before
    # 80 MB in arrays smaller than a huge page, and 40 MB that are freed again
    arrays = [np.full(100_000, 1.0) for _ in range(100)]
    spare = [np.full(100_000, 1.0) for _ in range(50)]
    del spare
after = resident_kb() - before
lazy = np.zeros(50_000_000)  # mapped on its own again
heap = [line.split()[0].split("-") for line in open("/proc/self/maps") if "[heap]" in line]
inside = sum(
    any(int(low, 16) <= array.ctypes.data < int(high, 16) for low, high in heap)
    for array in arrays
)
[huge] = [line for line in open("/proc/self/smaps_rollup") if line.startswith("AnonHugePages")]
print(granted, unused, inside, huge.split()[1], after, resident_kb() - before - after)
"""


@pytest.mark.skipif(not SUPPORTED, reason="no huge pages on this machine")
@pytest.mark.parametrize("size", [200_000_000, 2_500_000_000], ids=["one block", "several"])
def test_allocations_lie_in_one_heap_and_take_memory_only_as_they_are_used(size):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(size)], capture_output=True, text=True, check=True
    )
    granted, unused, inside, huge, after, lazy = done.stdout.split()
    assert granted == "True"
    assert int(unused) < 20_000  # kB
    assert int(inside) == 100
    assert 76_000 < int(after) < 110_000  # what was freed went back to the system
    assert int(lazy) < 20_000
    disabled = "[never]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    assert int(huge) > 60_000 or disabled


def test_without_huge_pages_nothing_is_granted(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_HUGE_PAGE_SIZE", tmp_path / "none")
    with memory.huge_pages(1 << 30) as granted:
        assert not granted


def test_a_cache_larger_than_the_free_memory_is_refused(monkeypatch):
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=10**9))
    memory.check_kv_cache_fits(10**9, 1, 100)
    with pytest.raises(
        UsageError,
        match=r"key-value cache of 2 sequences of 4,000 tokens: 3\.0 GB needed, 1\.0 GB free",
    ):
        memory.check_kv_cache_fits(3 * 10**9, 2, 4000)


REUSE = """
import numpy as np, resource
from contextlib import nullcontext
from compressor.runtimes.memory import reused_memory

def resident_mb():
    [line] = [line for line in open("/proc/self/status") if line.startswith("VmRSS")]
    return int(line.split()[1]) // 1024

def faults():  # of twenty steps that allocate and free 160 MB
    for step in range(25):
        arrays = [np.full(5_000_000, 1.0) for _ in range(4)]
        del arrays
        if step == 4:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

outside, start = faults(), resident_mb()
with reused_memory():
    inside = faults()
    kept = resident_mb() - start
print(outside, inside, kept, resident_mb() - start)
"""


@pytest.mark.skipif(not SUPPORTED, reason="no huge pages on this machine")
def test_reused_memory_goes_back_to_the_system_at_the_end_and_not_before():
    done = subprocess.run([sys.executable, "-c", REUSE], capture_output=True, text=True, check=True)
    outside, inside, kept, after = map(int, done.stdout.split())
    assert inside < 100 < 10_000 < outside
    assert kept > 120
    assert after < 40


def test_memory_is_not_kept_where_there_are_no_huge_pages(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_HUGE_PAGE_SIZE", tmp_path / "none")
    monkeypatch.setattr(memory, "_grow_heap", None)
    with memory.reused_memory():
        pass
