"""Translate OSError into errors that a user can act on."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compressor.errors import StorageError


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn an OSError while reading ``path`` into a StorageError."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError while writing below ``path`` into a StorageError with a matching remedy."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, path) from error


def storage_error(error: OSError, path: Path) -> StorageError:
    """Return the error for an OSError raised while writing below ``path``."""
    place = error.filename or path
    if error.errno not in KNOWN:
        return StorageError(f"cannot write {place}: {error.strerror or error}")
    what, remedy = KNOWN[error.errno]
    return StorageError(what.format(place=place), remedy=remedy)


_FULL = (
    "the disk is full: cannot write {place}",
    "free some space (`autoglm-compress gc` removes unneeded artifacts) or choose "
    "another --output-dir; the run then resumes where it stopped",
)
_FORBIDDEN = (
    "no permission to write {place}",
    "choose another --output-dir, or change its permissions",
)
_HANDLES = (
    "too many open files: cannot open {place}",
    "raise the limit (`ulimit -n 4096`), or end other programs",
)
KNOWN = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _FULL),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _FORBIDDEN),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), _HANDLES),
    errno.ENAMETOOLONG: (
        "a name is too long for the file system: {place}",
        "choose a shorter name, or another folder",
    ),
    errno.EISDIR: ("{place} is a folder, and not a file", "name a file, or remove the folder"),
    errno.EIO: ("the disk reports an error: {place}", "check the disk (`dmesg`)"),
}
"""Causes that have a remedy: errno to the message and the remedy."""
