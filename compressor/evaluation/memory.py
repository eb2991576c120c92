"""Peak memory of this process, as the kernel counts it."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
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
