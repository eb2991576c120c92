"""Peak memory of this process, and what else the machine does, as the kernel counts it."""

from __future__ import annotations

import ctypes
import gc
import os
import time
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_STAT = Path("/proc/stat")
_RESET_PEAK = "5"  # proc(5): sets VmHWM to what is in memory now


def peak_rss_bytes() -> int:
    """The largest resident set (VmHWM) since the process began, or since ``restart_peak``."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no VmHWM")


def restart_peak() -> bool:
    """Give free memory back and count the peak from here; False where the kernel does not allow it.

    Then the peak also holds what was in memory before, and is an upper bound.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    try:
        _CLEAR.write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


class OtherLoad:
    """Watches, from its creation on, how many cores other processes keep busy (proc(5), /proc/stat)."""

    def __init__(self) -> None:
        self.start = self._now()

    def cores(self) -> float | None:
        """Mean over the time since; the kernel counts in hundredths of a second. None for less than a tenth."""
        wall, busy, own = (new - old for new, old in zip(self._now(), self.start, strict=True))
        return max(0.0, busy - own) / wall if wall >= 0.1 else None

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """Wall, busy (of all cores) and own time, in seconds."""
        user, nice, system, _, _, irq, soft_irq, steal = map(int, _STAT.read_text().split()[1:9])
        busy = (user + nice + system + irq + soft_irq + steal) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), busy, time.process_time()
