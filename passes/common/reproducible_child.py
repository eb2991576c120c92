"""Children whose output does not depend on the addresses of their memory.

Libraries that order what they write by pointers give other bytes each time. A child without
address-space randomization, with a fixed environment, gives the same ones.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import passes

_ADDR_NO_RANDOMIZE = 0x0040000  # linux/personality.h
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_INHERITED = ("PATH", "HOME", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "TMPDIR")


def run_module(
    module: str, arguments: Sequence[str], folder: Path, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a module of Python in a folder, and return its exit code and what it printed."""
    return subprocess.run(
        [sys.executable, "-P", "-m", module, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        cwd=folder,
        env=_environment(),
        preexec_fn=_prepare_child,  # two calls into libc
        check=False,
    )


def _environment() -> dict[str, str]:
    """Return the variables that libraries may need, and a path to import this package from."""
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return inherited | {
        "PYTHONPATH": str(Path(next(iter(passes.__path__))).parent),
        "PYTHONHASHSEED": "0",
        "LC_ALL": "C.UTF-8",
        "MALLOC_MMAP_MAX_": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _prepare_child() -> None:
    libc = ctypes.CDLL(None)
    libc.personality(_ADDR_NO_RANDOMIZE)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # ended with its parent, however that ends
