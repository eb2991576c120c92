"""Run commands in forked children of a process that has imported everything already."""

from __future__ import annotations

import os
import select
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cli
from compressor import interrupts
from compressor.commands.main import run_app

_KIB = 1024


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended, and what it printed."""

    code: int
    """Minus the number of the signal that ended the process, if one did."""
    printed: str
    timed_out: bool = False
    """True if it was killed, with its own children, at its time limit."""
    peak_bytes: int = 0
    """Peak memory of the process or of its largest child, beyond that at the start."""


def run_forked(
    *arguments: object,
    prepare: Callable[[], object] = lambda: None,
    timeout_s: float | None = None,
) -> Outcome:
    """Run ``autoglm-compress ARGUMENTS`` in a child of this process.

    Args:
        arguments: words of the command line.
        prepare: called in the child, before the command.
        timeout_s: time limit; None for none.
    """
    with tempfile.TemporaryDirectory() as folder:
        output, start = Path(folder) / "output", Path(folder) / "start"
        if (child := os.fork()) == 0:
            start.write_text(str(_resident_bytes()))
            _run_command([str(word) for word in arguments], prepare, output)
        in_time = timeout_s is None or _ends_within(child, timeout_s)
        if not in_time:
            os.killpg(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
        printed = output.read_bytes().decode(errors="backslashreplace") if output.exists() else ""
        peak = max(0, usage.ru_maxrss * _KIB - int(start.read_text() or 0))
    return Outcome(os.waitstatus_to_exitcode(status), printed, not in_time, peak)


def _ends_within(child: int, seconds: float) -> bool:
    handle = os.pidfd_open(child)
    try:
        return bool(select.select([handle], [], [], seconds)[0])
    finally:
        os.close(handle)


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _run_command(arguments: list[str], prepare: Callable[[], object], output: Path) -> None:
    code = 99
    try:
        os.setpgid(0, 0)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        descriptor = os.open(output, os.O_CREAT | os.O_WRONLY)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        for number, name in ((1, "stdout"), (2, "stderr")):  # pytest has replaced them
            setattr(sys, name, os.fdopen(os.dup(number), "w", buffering=1))
        interrupts.handle_signals()
        sys.argv = ["autoglm-compress", *arguments]
        prepare()
        run_app(cli.app)
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException:  # noqa: BLE001  what leaves a command is a finding of the caller
        traceback.print_exc()
    finally:
        os._exit(code)
