"""Memory that is asked for before a model is opened; in a process of its own, as the heap stays as it is made."""

import subprocess
import sys
from pathlib import Path

import pytest

from compressor.runtimes.onnxruntime import huge_pages

SUPPORTED = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size").is_file()
SCRIPT = """
import numpy as np, sys
from compressor.runtimes.onnxruntime.huge_pages import in_huge_pages

def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1])

before = resident()
with in_huge_pages(int(sys.argv[1])) as granted:
    free = resident() - before
    arrays = [np.full(100_000, 1.0) for _ in range(100)]  # 80 MB, none of them as large as a huge page
    spare = [np.full(100_000, 1.0) for _ in range(50)]
    del spare
after = resident() - before
lazy = np.zeros(50_000_000)  # mapped by itself again
heap = [line.split()[0].split("-") for line in open("/proc/self/maps") if "[heap]" in line]
inside = sum(any(int(low, 16) <= one.ctypes.data < int(high, 16) for low, high in heap) for one in arrays)
total = next(line for line in open("/proc/self/smaps_rollup") if line.startswith("AnonHugePages")).split()[1]
print(granted, free, inside, total, after, resident() - before - after)
"""


@pytest.mark.skipif(not SUPPORTED, reason="no huge pages here")
@pytest.mark.parametrize("size", [200_000_000, 2_500_000_000], ids=["one block", "several"])
def test_what_is_allocated_next_lies_in_one_heap_and_takes_memory_as_it_is_used(size):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(size)], capture_output=True, text=True, check=True
    )
    granted, free, inside, huge, after, lazy = done.stdout.split()
    assert granted == "True"
    assert int(free) < 20_000  # kB: nothing of it is there yet
    assert int(inside) == 100
    assert 76_000 < int(after) < 110_000  # what was spare went back
    assert int(lazy) < 20_000
    assert (
        int(huge) > 60_000
        or "[never]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    )


def test_elsewhere_nothing_happens(monkeypatch, tmp_path):
    monkeypatch.setattr(huge_pages, "_HUGE", tmp_path / "none")
    with huge_pages.in_huge_pages(1 << 30) as granted:
        assert not granted
