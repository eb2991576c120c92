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
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return StorageError(
            f"the disk is full: cannot write {error.filename or path}",
            remedy="free some space (`autoglm-compress gc` removes unneeded artifacts) or choose "
            "another --output-dir; the run then resumes where it stopped",
        )
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return StorageError(
            f"no permission to write {error.filename or path}",
            remedy="choose another --output-dir, or change its permissions",
        )
    return StorageError(f"cannot write {error.filename or path}: {error.strerror or error}")
