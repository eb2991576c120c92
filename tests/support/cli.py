"""Run the command line as a user does, in a process of its own."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from subprocess import CompletedProcess

from tests.support.warm_cli import WarmCall

_TIMEOUT_SECONDS = 300
_LOCK = threading.Lock()


def cli(
    *arguments: object, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> CompletedProcess[str]:
    """Run ``autoglm-compress ARGUMENTS`` in ``cwd`` and return its exit code and its output.

    The process is a fork of one that has imported the libraries (``warm_cli.py``).
    """
    words = [str(argument) for argument in arguments]
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder) / "stdout", Path(folder) / "stderr"
        call = WarmCall(
            arguments=words,
            folder=cwd or Path.cwd(),
            environment=dict(os.environ if env is None else env),
            output=output,
            errors=errors,
            timeout_seconds=_TIMEOUT_SECONDS,
        )
        with _LOCK:
            code = _run(call)
        return CompletedProcess(words, code, output.read_text(), errors.read_text())


def cold_cli(*arguments: object, cwd: Path | None = None) -> CompletedProcess[str]:
    """Run ``autoglm-compress ARGUMENTS`` in a new interpreter, as ``cli`` does otherwise."""
    command = [sys.executable, "-m", "cli", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, check=False, timeout=_TIMEOUT_SECONDS
    )


def workers_address() -> Path:
    """Return the socket at which forks of the warm process measure models."""
    with _LOCK:
        _warm_process()
    return _folder() / "workers"


def _run(call: WarmCall) -> int:
    process = _warm_process()
    assert process.stdin
    assert process.stdout
    process.stdin.write(call.model_dump_json() + "\n")
    process.stdin.flush()
    return int(process.stdout.readline())


@cache
def _folder() -> Path:
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return Path(folder.name)


@cache
def _warm_process() -> subprocess.Popen[str]:
    """Start the process that has the libraries; it ends with this one."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.warm_cli", str(_folder() / "workers")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    atexit.register(process.communicate)
    return process
