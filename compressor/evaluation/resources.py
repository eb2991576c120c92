"""Resource use of a model: static cost, peak memory of this process, load from other processes."""

from __future__ import annotations

import ctypes
import gc
import os
import time
from pathlib import Path

from compressor.artifacts.manifest import Metric
from compressor.runtimes.format_records import SampleShapes
from compressor.runtimes.formats import StoredModel

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_STAT = Path("/proc/stat")
_RESET_PEAK = "5"  # proc(5): sets VmHWM to the current resident set
_MIN_SECONDS = 0.1
"""Shortest interval for a load; the kernel counts in hundredths of a second."""


def cost_metrics(
    model: StoredModel, sample_shapes: SampleShapes, macs: int | None = None
) -> tuple[Metric, ...]:
    """Return size, parameters, MACs and weights; what the format cannot determine is omitted.

    Args:
        model: the model on disk.
        sample_shapes: the shape of each array of one sample, batch axis (1) included.
        macs: multiply-accumulates of that sample; None to let the format count them.
    """
    cost = model.format.cost(model.path, sample_shapes)
    values = (
        ("size_bytes", cost.size_bytes, "bytes"),
        ("parameters", cost.parameters, "count"),
        ("macs", cost.macs if macs is None else macs, "count"),
        ("weight_bytes", cost.weight_bytes, "bytes"),
    )
    return tuple(
        Metric(name=name, value=float(value), unit=unit, better="lower", samples=1)
        for name, value, unit in values
        if value is not None
    )


def peak_rss_bytes() -> int:
    """Return the peak resident set (VmHWM) since process start, or since ``reset_peak_rss``.

    Raises:
        OSError: the kernel does not report it.
    """
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no VmHWM")


def reset_peak_rss() -> bool:
    """Free unused memory and restart the peak; return True if the kernel allows the restart.

    Otherwise the peak includes earlier memory and is an upper bound.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


class BackgroundLoad:
    """Counts the cores that other processes keep busy, from its creation on (/proc/stat)."""

    def __init__(self) -> None:
        self.start = self._seconds()

    def cores(self) -> float | None:
        """Return the mean number of busy cores; None for an interval under 0.1 seconds."""
        end = self._seconds()
        wall, busy, own = (new - old for new, old in zip(end, self.start, strict=True))
        return max(0.0, busy - own) / wall if wall >= _MIN_SECONDS else None

    @staticmethod
    def _seconds() -> tuple[float, float, float]:
        """Return wall-clock time, busy time of all cores, and CPU time of this process."""
        user, nice, system, _, _, irq, soft_irq, steal = map(int, _STAT.read_text().split()[1:9])
        busy = (user + nice + system + irq + soft_irq + steal) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), busy, time.process_time()
