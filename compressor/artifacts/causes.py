"""Causes that any library may meet: a full disk, no memory, too few file handles, a killed child.

Libraries report them in classes and words of their own, in this process or in a child. They are
looked for in the whole chain of an exception, so that a user reads the cause and not the place
where it surfaced.
"""

from __future__ import annotations

import errno
import os
import platform
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

from compressor.artifacts.errors_from_os import KNOWN, storage_error
from compressor.errors import CompressError, ResourceError, StorageError, UsageError

_WORDS = {
    "no space left on device": errno.ENOSPC,
    "disk quota exceeded": errno.EDQUOT,
    "too many open files": errno.EMFILE,
}
"""Texts that C and C++ libraries print for an errno."""
_NO_MEMORY = (
    "bad_alloc",
    "bad allocation",
    "can't allocate memory",
    "cannot allocate memory",
    "out of memory",
    "failed to allocate memory",
    "memory allocation of",
    "defaultcpuallocator",
)
_MEMORY_REMEDY = (
    "use less at once (`batch_size`, `num_samples`), end other programs, or use a machine with more"
)


def known_cause(error: BaseException, path: Path) -> CompressError | None:
    """Return the error to report if a known cause lies in the chain of ``error``, else None.

    Args:
        error: any exception.
        path: the place that was being written, for causes that name none.
    """
    for link in _chain(error):
        if isinstance(link, CompressError):
            continue
        if isinstance(link, MemoryError) or getattr(link, "errno", None) == errno.ENOMEM:
            return _no_memory()
        if isinstance(link, PermissionError):
            return StorageError(
                f"no permission to open {link.filename or path}", remedy="change its permissions"
            )
        if isinstance(link, OSError) and link.errno == errno.ENAMETOOLONG:
            what, remedy = KNOWN[link.errno]  # a name that the user gave, or one of a config
            return UsageError(what.format(place=link.filename or path), remedy=remedy)
        if isinstance(link, OSError) and link.errno in KNOWN:
            return storage_error(link, path)
        if (found := cause_in_text(str(link), path)) is not None:
            return found
    return None


def cause_in_text(text: str, path: Path) -> CompressError | None:
    """Return the error for a cause that is named in what a library or a child has printed."""
    folded = text.casefold()
    for words, number in _WORDS.items():
        if words in folded:
            return storage_error(OSError(number, os.strerror(number)), path)
    return _no_memory() if any(words in folded for words in _NO_MEMORY) else None


def describe_ending(code: int) -> str:
    """Return how a child ended: ``exited with code 1``, ``was killed by signal 9 (Killed)``."""
    if code >= 0:
        return f"exited with code {code}"
    return f"was killed by signal {-code} ({signal.strsignal(-code)})"


def killed_child(code: int, subject: str) -> CompressError | None:
    """Return the error for a child that somebody has killed, None if it ended in another way.

    Args:
        code: its exit code; minus the number of the signal.
        subject: what the child was: ``the process that measures …``.
    """
    if code != -signal.SIGKILL:
        return None
    return ResourceError(
        f"{subject} {describe_ending(code)}",
        remedy="the kernel does this when memory runs out (`dmesg` says so): " + _MEMORY_REMEDY,
    )


def describe_unexpected(error: Exception) -> CompressError:
    """Return the error to report for an exception that nothing has foreseen.

    A known cause is reported as itself. Otherwise the traceback goes to a file that can be attached
    to a report.
    """
    if (cause := known_cause(error, Path.cwd())) is not None:
        return cause
    place = keep_traceback("".join(traceback.format_exception(error)))
    return CompressError(
        f"unexpected {summary(error)}", remedy=f"this is a defect of autoglm-compress: {place}"
    )


def keep_traceback(lines: str) -> str:
    """Write a traceback to a temporary file; return what the user is to do with it."""
    head = f"{' '.join(sys.argv)}\nPython {platform.python_version()}, {platform.platform()}\n\n"
    try:
        handle, name = tempfile.mkstemp(prefix="autoglm-compress-", suffix=".traceback.txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(head + lines)
    except OSError:
        return "run the command again with a writable TMPDIR, and report what it writes there"
    return f"please report it with the file {name}"


def summary(error: BaseException) -> str:
    """Return the class and the first line of an exception."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def failed_child(code: int, subject: str, printed: str, path: Path) -> CompressError | None:
    """Return the error for a child that failed for a known cause, None if there is none.

    Args:
        code: its exit code.
        subject: what the child was.
        printed: its last lines.
        path: the place that it was writing.
    """
    return killed_child(code, subject) or cause_in_text(printed, path)


def _no_memory() -> CompressError:
    return ResourceError("memory ran out", remedy=_MEMORY_REMEDY)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and those that it was raised from or in the handling of."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__
