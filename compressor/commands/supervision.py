"""The parent of the program: it reports crashes, which the program cannot report itself.

A library in C++ or Rust that meets a damaged file may end its process by a signal, and the kernel
ends a process that takes too much memory. The program runs in a child that is forked before any
library is loaded, which takes 2 ms. The parent waits, passes signals on, and exits with the code of
the child; if a signal has ended it, the parent prints one error.
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from compressor import interrupts
from compressor.errors import CompressError
from compressor.foreign_files import crash_notes

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PASSED_ON = frozenset({signal.SIGINT, signal.SIGTERM})
_CRASHES = frozenset(
    {
        *(signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL),
        *(signal.SIGTRAP, signal.SIGSYS, signal.SIGKILL, signal.SIGXCPU, signal.SIGXFSZ),
    }
)
"""Signals that end a program which nobody wanted to end."""


def supervised(run: Callable[[], NoReturn]) -> NoReturn:
    """Run the program in a child, and exit as it does; a crash is one error and its exit code.

    Args:
        run: the program, which exits. It runs in this process where there is no ``/proc``.
    """
    if sys.platform != "linux":
        run()
    crash_notes.share_notes()
    stacks = os.memfd_create("stacks")
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, {*_PASSED_ON, signal.SIGCHLD})
    parent = os.getpid()
    gc.freeze()  # the collector of the child would copy every page of this process
    if (child := os.fork()) == 0:
        _end_with(parent)
        faulthandler.enable(stacks)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*_PASSED_ON, signal.SIGCHLD})
        run()
    code = _exit_code(child)
    interrupts.ignore_signals()
    os._exit(code if code >= 0 else _report_signal(-code, stacks))


def _end_with(parent: int) -> None:
    """Have the kernel end this process when its parent ends, however that ends."""
    with suppress(OSError):  # there is no prctl
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _exit_code(child: int) -> int:
    """Wait for the child; return its exit code, or minus the number of the signal that ended it."""
    while True:
        arrived = signal.sigwaitinfo({*_PASSED_ON, signal.SIGCHLD})
        if arrived.si_signo in _PASSED_ON:
            if arrived.si_code <= 0:  # from a process; a terminal signals the child as well
                os.kill(child, arrived.si_signo)
            continue
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)


def _report_signal(number: int, stacks: int) -> int:
    """Print the error for a child that a signal has ended, and return the exit code."""
    if number not in _CRASHES:  # the hangup of a terminal, Ctrl-\\: this process ends so too
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)
    from compressor.reports.console.terminal import print_error

    error = _crash_error(number, stacks)
    print_error(error)
    sys.stderr.flush()
    return error.exit_code


def _crash_error(number: int, stacks: int) -> CompressError:
    from compressor.artifacts.causes import describe_ending, keep_traceback, killed_child

    note = crash_notes.read_note()
    subject = "the process" if note is None else f"{note.what}: the process that read it"
    if killed := killed_child(-number, subject):
        return killed
    if note is not None:
        error = CompressError(f"{subject} {describe_ending(-number)}", remedy=note.remedy)
        error.exit_code = note.exit_code
        return error
    size = os.fstat(stacks).st_size
    printed = os.pread(stacks, size, 0).decode(errors="replace")
    return CompressError(
        f"{subject} {describe_ending(-number)}",
        remedy=f"a library has crashed: {keep_traceback(printed)}",
    )
