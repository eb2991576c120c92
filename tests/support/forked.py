"""Run commands in forked children of a process that has imported everything already."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cli
from compressor import interrupts


@dataclass(frozen=True, slots=True)
class Outcome:
    """Exit code of a command, and what it printed."""

    code: int
    """Minus the number of the signal that ended the process, if one did."""
    printed: str


def run_forked(*arguments: object, prepare: Callable[[], object] = lambda: None) -> Outcome:
    """Run ``autoglm-compress ARGUMENTS`` in a child of this process.

    Args:
        arguments: words of the command line.
        prepare: called in the child, before the command.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        if (child := os.fork()) == 0:
            _run_command([str(word) for word in arguments], prepare, output)
        _, status = os.waitpid(child, 0)
        printed = output.read_text(errors="replace") if output.exists() else ""
    return Outcome(os.waitstatus_to_exitcode(status), printed)


def _run_command(arguments: list[str], prepare: Callable[[], object], output: Path) -> None:
    code = 99
    try:
        descriptor = os.open(output, os.O_CREAT | os.O_WRONLY)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        for number, name in ((1, "stdout"), (2, "stderr")):  # pytest has replaced them
            setattr(sys, name, os.fdopen(os.dup(number), "w", buffering=1))
        interrupts.handle_signals()
        sys.argv = ["autoglm-compress", *arguments]
        prepare()
        cli.main()
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    finally:
        os._exit(code)
