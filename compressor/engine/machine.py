"""What the machine is, and how fast it multiplies: for estimates and for the record, never for an id."""

from __future__ import annotations

import os
import platform
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from compressor.artifacts.manifest import Environment


def environment(threads: int, device: str) -> Environment:
    """Where this process runs."""
    import psutil

    return Environment(
        platform=platform.platform(),
        cpu=_cpu_name(),
        cores=os.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        python=platform.python_version(),
        threads=threads,
        device=device,
    )


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@cache
def gemm_flops_per_second() -> float:
    """Single-precision matrix product rate of all cores, measured for some 20 ms (2·n³ operations for an n×n product)."""
    import numpy as np

    size = 768
    left = np.ones((size, size), dtype=np.float32)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        left @ left
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


@cache
def tool_version(distribution: str) -> str:
    """The installed version of a distribution, or ``not installed``."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"


def available_memory_bytes() -> int:
    """Memory that a new process could take without swapping."""
    import psutil

    return int(psutil.virtual_memory().available)


class PeakMemory:
    """Peak resident memory of this process since the object was made (Linux: the kernel's own high-water mark, reset)."""

    def __init__(self) -> None:
        self._clear = Path("/proc/self/clear_refs")
        if self._clear.exists() and os.access(self._clear, os.W_OK):
            self._clear.write_text("5")

    def bytes(self) -> int:
        """The high-water mark so far."""
        status = Path("/proc/self/status")
        if status.is_file():
            for line in status.read_text(encoding="ascii", errors="replace").splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
