"""Run commands in forked children of a process that has imported everything: about 50 ms each."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_KIB = 1024
POLL_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended."""

    command: tuple[str, ...]
    code: int
    """Exit code; minus the number of the signal for a child that was killed."""
    output: str
    seconds: float
    peak_bytes: int
    """Peak memory beyond that at its start, when everything is imported."""
    timed_out: bool

    def problem(self, allowed: frozenset[int], most_bytes: int) -> str | None:
        """Return what is wrong with the outcome; None if nothing is."""
        if self.timed_out:
            return "hangs"
        if self.code < 0:
            return f"killed by signal {-self.code}"
        if "Traceback" in self.output or "defect of autoglm-compress" in self.output:
            return "traceback"
        if self.peak_bytes > most_bytes:
            return f"{self.peak_bytes / 1e9:.2f} GB"
        if any(ord(character) < 32 and character not in "\n\t" for character in self.output):
            return "control characters"
        return None if self.code in allowed else f"exit code {self.code}"


def run_command(command: Sequence[str], folder: Path, timeout_s: float = 300) -> Outcome:
    """Run a command of the program in a child, in a folder."""
    log, memory = folder / "output.txt", folder / "memory.txt"
    memory.write_text("0")
    start = time.monotonic()
    pid = os.fork()
    if not pid:
        _child(command, folder, log, memory)
    timed_out = False
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if not timed_out and time.monotonic() - start > timeout_s:
            timed_out = True
            os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_SECONDS)
    peak = int(memory.read_text())
    output = log.read_bytes().decode(errors="backslashreplace")
    code = os.waitstatus_to_exitcode(status)
    return Outcome(tuple(command), code, output, time.monotonic() - start, peak, timed_out)


def _child(command: Sequence[str], folder: Path, log: Path, memory: Path) -> None:
    code, before = 99, _resident_bytes("VmRSS")
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(folder)
        os.setpgid(0, 0)
        sys.argv = ["autoglm-compress", *command]
        import cli

        cli.main()
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException:  # noqa: BLE001  whatever a command raises is a finding
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        memory.write_text(str(max(0, _resident_bytes("VmHWM") - before)))
        os._exit(code)


def _resident_bytes(field: str) -> int:
    """Return a field of the status of this process, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * _KIB
