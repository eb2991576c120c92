"""Fork the process that measures a model, instead of starting a fresh one, which takes seconds."""

from __future__ import annotations

import os
import signal
import sys
from types import SimpleNamespace
from typing import IO

import torch

from compressor.evaluation import process, worker


def fork_measuring_processes() -> None:
    """Have this process measure models in forked children, and compute with one thread.

    A child would wait for ever for the threads of OpenMP, which a fork does not copy.
    """
    torch.set_num_threads(1)
    torch.set_num_threads = lambda _: None
    process.subprocess = SimpleNamespace(Popen=_ForkedWorker, PIPE=None)  # type: ignore[assignment]


class _ForkedWorker:
    """The part of ``subprocess.Popen`` that a measuring process uses."""

    def __init__(self, *_: object, **__: object) -> None:
        pipes = [os.pipe() for _ in range(3)]
        (read_0, write_0), (read_1, write_1), (read_2, write_2) = pipes
        self._pid = os.fork()
        if not self._pid:
            for target, (source, other) in enumerate(
                ((read_0, write_0), pipes[1][::-1], pipes[2][::-1])
            ):
                os.dup2(source, target)
                os.close(other)
            _work()
        for descriptor in (read_0, write_1, write_2):
            os.close(descriptor)
        self.stdin = _stream(write_0, "w")
        self.stdout, self.stderr = _stream(read_1, "r"), _stream(read_2, "r")
        self._code: int | None = None

    def wait(self) -> int:
        if self._code is None:
            self._code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        return self._code

    def kill(self) -> None:
        if self._code is None:
            os.kill(self._pid, signal.SIGKILL)


def _stream(descriptor: int, mode: str) -> IO[str]:
    return os.fdopen(descriptor, mode, encoding="utf-8", errors="replace")


def _work() -> None:
    code = 1
    try:
        sys.stdin = _stream(0, "r")
        sys.stdout = sys.stderr = _stream(2, "w")
        sys.argv = ["worker"]
        code = worker.main()
    finally:
        sys.stderr.flush()
        os._exit(code)
