"""The parent's side of a measuring process: start it, send lines, receive messages, end it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Self

import compressor
from compressor.artifacts.causes import describe_ending, failed_child
from compressor.errors import CompressError, PassError, RequirementError
from compressor.evaluation.protocol import Answer, Request

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
_TAIL_LINES = 12


def require_linux() -> None:
    """Check that models can be measured on this platform.

    Raises:
        RequirementError: it is not Linux, so it has neither ``prctl`` nor ``/proc``.
    """
    if sys.platform != "linux":
        raise RequirementError(
            f"measuring needs Linux (prctl and /proc); this is {sys.platform}",
            remedy="run on Linux; only `plan`, `validate` and `show` work without it",
        )


class MeasuringProcess:
    """``python -m compressor.evaluation.worker`` and its pipes; a context manager that ends it.

    Args:
        request: the model to measure, sent as the first line.
    """

    def __init__(self, request: Request) -> None:
        require_linux()
        self._request = request
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "compressor.evaluation.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=_environment(request.threads),
        )
        self._reader = threading.Thread(
            target=self._tail.extend, args=(self._process.stderr,), daemon=True
        )
        self._reader.start()
        self.send(request.model_dump_json())

    def send(self, line: str) -> None:
        """Write a line to the stdin of the process.

        A process that has ended is not an error here: ``receive`` reports it.
        """
        assert self._process.stdin  # noqa: S101 - it is a pipe
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return  # `receive` raises, with the reason

    def receive(self) -> Answer:
        """Return the next message.

        Raises:
            CompressError: the process raised it, as the same class.
            ResourceError: the process was killed, or memory ran out.
            PassError: the process crashed; the message ends with the last lines that it printed.
        """
        assert self._process.stdout  # noqa: S101 - it is a pipe
        line = self._process.stdout.readline()
        if not line.endswith("\n"):  # the end of the stream, or a line cut off by a crash
            raise self._crash_error()
        answer = Answer.model_validate_json(line)
        if answer.failure is not None:
            raise answer.failure.to_error()
        return answer

    def _crash_error(self) -> CompressError:
        code = self._process.wait()
        self._reader.join()
        subject = f"the process that measures {self._request.model}"
        printed = "".join(f"\n    {line.rstrip()}" for line in self._tail)
        cause = failed_child(code, subject, printed, Path(tempfile.gettempdir()))
        ending = describe_ending(code)
        return cause or PassError(f"{subject} {ending}:{printed or ' (no output)'}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe  # noqa: S101 - all three are pipes
            try:
                pipe.close()
            except BrokenPipeError:  # the process ended before it read the last line
                continue


def _environment(threads: int | None) -> dict[str, str]:
    """Return this process's environment, with the package on PYTHONPATH and limited threads."""
    root = str(Path(next(iter(compressor.__path__))).parent)
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    limits = dict.fromkeys(_THREAD_VARIABLES, str(threads)) if threads else {}
    return {**os.environ, **limits, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
