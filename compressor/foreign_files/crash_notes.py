"""What a library reads at this moment, where the parent process finds it after a crash.

A library in C++ or Rust may end the process on a damaged file, with no exception to turn into an
error. The program runs in a child (``compressor/commands/supervision.py``), so the note is kept in
memory that both share.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from compressor.errors import CompressError

_BYTES = 1 << 14
_EMPTY = b"\0"
_memory: mmap.mmap | None = None


@dataclass(frozen=True, slots=True)
class CrashNote:
    """The error that a crash stands for."""

    what: str
    remedy: str | None
    exit_code: int


def share_notes() -> None:
    """Keep notes from now on, in memory that is shared with children forked later."""
    global _memory
    _memory = mmap.mmap(-1, _BYTES)


def read_note() -> CrashNote | None:
    """Return the note that the child had when it ended; None if a library read nothing."""
    if _memory is None:
        return None
    try:
        return CrashNote(**json.loads(_memory[:].split(_EMPTY, 1)[0]))
    except (ValueError, TypeError):  # there is none, or the child ended while it wrote one
        return None


@contextmanager
def crash_note(
    what: str | Path, error_type: type[CompressError], remedy: str | None = None
) -> Iterator[None]:
    """Within the block, a crash of this process is an error with this place and remedy.

    Args:
        what: a file, or what a library could not do with it.
        error_type: the class of the error.
        remedy: what the user can do.
    """
    if _memory is None:
        yield
        return
    previous = _memory[:].split(_EMPTY, 1)[0]
    _write(json.dumps(asdict(CrashNote(str(what), remedy, error_type.exit_code))).encode())
    try:
        yield
    finally:
        _write(previous)


def _write(note: bytes) -> None:
    if _memory is not None and len(note) < _BYTES:
        _memory[: len(note) + 1] = note + _EMPTY
