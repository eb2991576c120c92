"""Calls into libraries that read foreign files: whatever they raise names the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compressor.errors import CompressError
from compressor.foreign_files.crash_notes import crash_note
from compressor.foreign_files.opening import OF_THE_MACHINE

_LONGEST_REASON = 400
_PANIC = "PanicException"
"""Name of the class that libraries in Rust raise from a panic; no subclass of ``Exception``."""


@contextmanager
def library_errors(
    what: str | Path, error_type: type[CompressError], remedy: str | None = None
) -> Iterator[None]:
    """Turn any exception of a library within the block into an error with place and remedy.

    A crash of the library is reported in the same way, by the parent process.

    Args:
        what: the start of the message: a file, or what the library could not do with it.
        error_type: the class of the error.
        remedy: what the user can do; where a module is not installed, that is said instead.

    Raises:
        CompressError: of ``error_type``; errors of this project pass as they are.
    """
    try:
        with crash_note(what, error_type, remedy):
            yield
    except (CompressError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except OSError as error:
        if error.errno in OF_THE_MACHINE:
            raise
        raise error_type(f"{what}: {reason_of(error)}", remedy=remedy) from error
    except ImportError as error:
        raise error_type(
            f"{what}: {reason_of(error)}", remedy="install the library that it names"
        ) from error
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != _PANIC:
            raise
        raise error_type(f"{what}: {reason_of(error)}", remedy=remedy) from error


def reason_of(error: BaseException) -> str:
    """Return the message of a library's exception on one line, shortened; else its class."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, KeyError):  # its message is a key alone
        return f"{error} is missing"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]} …"
