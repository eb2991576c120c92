"""Measuring processes as forks of a process with loaded libraries.

A measuring process spends about three seconds on importing torch and transformers, and a pipeline
starts one for each step. ``serve_workers`` runs in a process that has imported them and computed
nothing; it forks a worker for each request, so that every measurement still has a process of its
own. ``use_warm_workers`` lets this process start its workers there. What the interpreter and the
libraries read when they start, such as OMP_NUM_THREADS, is that of the serving process.

A request is one message with the environment, the folder and the three pipes of the worker. The
answer is its pid; then its exit code, when it has ended. A worker is killed when the process that
requested it ends, as it would be as a child.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from compressor.evaluation import process, worker

WORKER_MODULE = worker.__name__
_MESSAGE_BYTES = 1 << 18
_POLL_SECONDS = 0.01
_START_SECONDS = 60


def serve_workers(address: Path) -> None:
    """Fork a worker for each request at a socket, until the parent of this process ends."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(address))
    listener.listen()
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # supervisors are not waited for
    while os.getppid() == parent:
        if not select.select([listener], [], [], 1)[0]:
            continue
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _supervise(connection)
        connection.close()


def _supervise(connection: socket.socket) -> None:
    """Start one worker, report its pid and its exit code, and end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, pipes, _, _ = socket.recv_fds(connection, _MESSAGE_BYTES, 3)
    child = os.fork()
    if child == 0:
        connection.close()
        _work(json.loads(message), pipes)
    for pipe in pipes:
        os.close(pipe)
    connection.send(f"{child}\n".encode())
    ended = 0
    while not ended:
        ended, status = os.waitpid(child, os.WNOHANG)
        if not ended and select.select([connection], [], [], _POLL_SECONDS)[0]:
            os.kill(child, signal.SIGKILL)  # nothing is sent here: the other end has closed
    with contextlib.suppress(BrokenPipeError):
        connection.send(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _work(request: Mapping[str, Any], pipes: Sequence[int]) -> None:
    """Become the worker of a request, and end with it."""
    code = 1
    try:
        for number, pipe in enumerate(pipes):
            os.dup2(pipe, number)
            os.close(pipe)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        sys.path[:0] = [path for path in paths if path and path not in sys.path]
        sys.argv = [WORKER_MODULE]
        worker._die_with = _no_parent  # type: ignore[attr-defined]
        code = worker.main()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _no_parent(parent: int) -> None:
    """Leave out the death signal: the supervisor kills the worker instead."""


class WarmWorker:
    """A measuring process, with the part of ``subprocess.Popen`` that ``MeasuringProcess`` uses."""

    def __init__(self, address: Path, environment: Mapping[str, str]) -> None:
        self._connection = _connect(address)
        inner, outer = [], []
        for is_input in (True, False, False):
            reading, writing = os.pipe()
            inner.append(reading if is_input else writing)
            outer.append(writing if is_input else reading)
        request = {"environment": dict(environment), "folder": str(Path.cwd())}
        socket.send_fds(self._connection, [json.dumps(request).encode()], inner)
        for pipe in inner:
            os.close(pipe)
        self._answers = self._connection.makefile("r")
        self.pid = int(self._answers.readline())
        self._code: int | None = None
        self.stdin = os.fdopen(outer[0], "w", encoding="utf-8")
        self.stdout = os.fdopen(outer[1], encoding="utf-8", errors="replace")
        self.stderr = os.fdopen(outer[2], encoding="utf-8", errors="replace")

    def kill(self) -> None:
        """End the worker."""
        if self._code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Return the exit code of the worker when it has ended."""
        if self._code is None:
            self._code = int(self._answers.readline() or -signal.SIGKILL)
            self._answers.close()
            self._connection.close()
        return self._code


def use_warm_workers(address: Callable[[], Path]) -> None:
    """Let this process start its measuring processes at a socket.

    Args:
        address: called when the first one starts.
    """

    def start(command: Sequence[str], *, env: Mapping[str, str], **_: object) -> WarmWorker:
        assert command[-1] == WORKER_MODULE
        return WarmWorker(address(), env)

    process.subprocess = SimpleNamespace(Popen=start, PIPE=subprocess.PIPE)  # type: ignore[assignment]


def _connect(address: Path) -> socket.socket:
    """Connect to the serving process, which may be about to start."""
    limit = time.monotonic() + _START_SECONDS
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(address))
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            if time.monotonic() > limit:
                raise
            time.sleep(_POLL_SECONDS)
        else:
            return connection
