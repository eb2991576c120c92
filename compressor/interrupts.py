"""Ctrl-C and SIGTERM: the first one is remembered and raised, a second one ends the process.

Python raises KeyboardInterrupt at whatever bytecode comes next. In a destructor the exception is
printed and dropped, and a library that catches everything turns it into an error of its own. So the
signal is also remembered: ``check`` raises it again between operations and before anything is
published, and whoever wraps a library's exception asks ``requested`` first. An interrupt that a
destructor has dropped is raised again a moment later.

Signals reach Python only between bytecodes. A thread that reads their numbers from a pipe ends the
process at the second signal even while the main thread computes in a library.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from compressor.errors import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_RAISED_AGAIN_SECONDS = 0.05
_ONE_SIGNAL_SECONDS = 0.2
"""A signal this soon after the first is the same one, sent to the group and by a parent as well."""
_first: float | None = None
"""Time of the first signal, on the monotonic clock."""
_diverted = False
"""True inside of ``diverted``."""


def handle_signals() -> None:
    """Have Ctrl-C and SIGTERM end this process at once, except inside of ``raised``.

    Does nothing outside of the main thread.
    """
    if threading.current_thread() is threading.main_thread():
        _set_handlers(_end_at_once)
        signal.signal(signal.SIGALRM, _raise)
        sys.unraisablehook = _keep_interrupt


@contextmanager
def raised() -> Iterator[None]:
    """Raise the first signal as KeyboardInterrupt inside of the block, or at its end.

    A second signal ends this process at once, from here on.
    """
    _watch_for_second_signal()
    _set_handlers(_remember)
    try:
        yield
        check()
    finally:
        _set_handlers(_end_at_once)


@contextmanager
def diverted(on_interrupt: Callable[[], None]) -> Iterator[None]:
    """Call a function at the first Ctrl-C inside of the block; a second one ends this process.

    SIGTERM is raised as ever.
    """
    global _diverted
    first: float | None = None

    def divert(number: int, frame: FrameType | None) -> None:
        nonlocal first
        now = time.monotonic()
        if first is None:
            first = now
            on_interrupt()
        elif now - first > _ONE_SIGNAL_SECONDS:
            _end_at_once(number, frame)

    previous = signal.signal(signal.SIGINT, divert)
    _diverted = True
    try:
        yield
    finally:
        _diverted = False
        signal.signal(signal.SIGINT, previous)


def requested() -> bool:
    """Return True if this process was asked to stop."""
    return _first is not None


def check() -> None:
    """Stop here if this process was asked to stop.

    Raises:
        KeyboardInterrupt: a signal has arrived; whatever caught the first exception lost it.
    """
    if requested():
        raise KeyboardInterrupt


def obeyed() -> None:
    """Forget the signal: the program has done what it asks for, and ends by itself."""
    global _first
    _first = None


def ignore_signals() -> None:
    """Ignore signals from now on: the exit code is decided, and Python shuts down."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _set_handlers(handler: Callable[[int, FrameType | None], None]) -> None:
    for number in _SIGNALS:
        signal.signal(number, handler)


def _remember(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - signal handler
    global _first
    if _first is None:
        _first = time.monotonic()
        raise KeyboardInterrupt


def _raise(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - signal handler
    raise KeyboardInterrupt


def _keep_interrupt(dropped: sys.UnraisableHookArgs) -> None:
    """Raise an interrupt again that was dropped, as soon as its destructor has ended."""
    if requested() and issubclass(dropped.exc_type, KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, _RAISED_AGAIN_SECONDS)
    else:
        sys.__unraisablehook__(dropped)


def _watch_for_second_signal() -> None:
    """Start the thread that ends this process at the second signal."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_count_signals, args=(reading,), daemon=True).start()


def _count_signals(pipe: int) -> None:
    first: float | None = None
    while numbers := os.read(pipe, 1):
        if numbers[0] not in _SIGNALS or (_diverted and numbers[0] == signal.SIGINT):
            continue
        now = time.monotonic()
        first = now if first is None else first
        if now - first > _ONE_SIGNAL_SECONDS:
            _end_at_once()


def _end_at_once(number: int = signal.SIGINT, frame: FrameType | None = None) -> None:  # noqa: ARG001
    """End this process; the kernel ends its children with it."""
    os.write(2, b"error: interrupted\n")
    os._exit(Interrupted.exit_code)
