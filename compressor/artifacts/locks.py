"""Locks (flock) of a store: who may build, replace or remove what, across processes and users.

The kernel releases a lock when its holder dies. Lock files are never removed while somebody could
hold them; whatever else lies at the place of one is replaced by a file.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from compressor.artifacts.errors_from_os import writing
from compressor.artifacts.files import lock_file

_FLAGS = os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@contextmanager
def lock(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock of ``path``; call ``waiting`` first if another process has it.

    Raises:
        StorageError: the lock file cannot be opened, or this platform has no flock.
    """
    with _open_lock(path) as handle:
        if not lock_file(handle, wait=False):
            waiting()
            lock_file(handle, wait=True)
        yield


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Hold the lock of ``path`` if it is free; yield False if another process has it."""
    with _open_lock(path) as handle:
        yield lock_file(handle, wait=False)


def _open_lock(path: Path) -> IO[Any]:
    """Open a lock file; a folder, pipe or dangling link in its place is replaced."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            mode = path.lstat().st_mode
            if stat.S_ISDIR(mode):
                shutil.rmtree(path)
            elif not stat.S_ISREG(mode):
                path.unlink()
        try:
            return os.fdopen(os.open(path, os.O_RDWR | _FLAGS, 0o666), "r+b", buffering=0)
        except PermissionError:  # the file of another user: locking needs no right to write
            return os.fdopen(os.open(path, os.O_RDONLY | _FLAGS & ~os.O_CREAT), "rb", buffering=0)
