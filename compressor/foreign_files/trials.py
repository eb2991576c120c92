"""Trials: what a foreign file makes a library do, done first in a child with limits.

No thread can interrupt a loop without end in a library, and a failed allocation may end the
process. A module of a trial has a ``main`` that reads its input from stdin and calls
``limit_resources`` before anything else.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import compressor

CPU_SECONDS = 10
_WALL_SECONDS = 120
"""Longer than the limit of computing time: the machine may be busy."""
MEMORY_BYTES = 1 << 30
_WITHOUT_BACKTRACE = {"RUST_BACKTRACE": "0"}
"""Libraries in Rust can wait for ever while they format one without memory."""


def trial_problem(
    module: str,
    content: bytes,
    *,
    cpu_seconds: int | None = None,
    memory_bytes: int | None = None,
) -> str | None:
    """Run the module of a trial in a child; return what is wrong, None if it ended well.

    Args:
        module: its full name.
        content: what it reads from stdin.
        cpu_seconds: limit of its computing time; by default ``CPU_SECONDS``.
        memory_bytes: limit of its memory; by default ``MEMORY_BYTES``.

    Returns:
        The rest of a sentence that names the subject of the trial: ``does not end within 10 s``.
    """
    cpu_seconds = CPU_SECONDS if cpu_seconds is None else cpu_seconds
    memory_bytes = MEMORY_BYTES if memory_bytes is None else memory_bytes
    root = str(Path(next(iter(compressor.__path__))).parent)
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    try:
        code = subprocess.run(
            [sys.executable, "-P", "-m", module, str(cpu_seconds), str(memory_bytes)],
            input=content,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=max(_WALL_SECONDS, 2 * cpu_seconds),
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **_WITHOUT_BACKTRACE},
        ).returncode
    except subprocess.TimeoutExpired:
        code = -signal.SIGXCPU
    if code == -signal.SIGXCPU:
        return f"does not end within {cpu_seconds} s"
    if code:
        return f"needs more than {memory_bytes >> 20} MiB of memory, or crashes its library"
    return None


def limit_resources() -> None:
    """Limit the computing time, the memory and the core file of this process, a trial."""
    seconds, memory_bytes = map(int, sys.argv[1:])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
