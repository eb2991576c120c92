"""The machine: environment records, memory, and speed for estimates; never part of an id."""

from __future__ import annotations

import os
import platform
import sys
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from compressor.artifacts.manifest import Environment


def environment(threads: int, device: str) -> Environment:
    """Return the environment that this process runs in."""
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
    """Measure the FP32 matrix product rate of all cores, in operations per second (about 20 ms).

    An n×n product counts as 2·n³ operations.
    """
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
    """Return the installed version of a distribution, or ``not installed``."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"


def available_memory_bytes() -> int:
    """Return the memory in bytes that a new process can take without swapping."""
    import psutil

    return int(psutil.virtual_memory().available)


class PeakMemory:
    """Peak resident memory of this process since construction.

    On Linux the kernel's high-water mark is reset; elsewhere the peak covers the whole process.
    """

    def __init__(self) -> None:
        self._clear = Path("/proc/self/clear_refs")
        if self._clear.exists() and os.access(self._clear, os.W_OK):
            self._clear.write_text("5")

    def bytes(self) -> int:
        """Return the peak so far, in bytes."""
        status = Path("/proc/self/status")
        if status.is_file():
            for line in status.read_text(encoding="ascii", errors="replace").splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        import resource

        unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, other systems KiB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
