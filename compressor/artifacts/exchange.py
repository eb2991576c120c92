"""Replace a directory by another one at once, so that readers find the old content or the new."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

from compressor.artifacts.files import fsync_directory

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # linux/fs.h
_UNSUPPORTED = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM})


def replace_directory(new: Path, final: Path, aside: Path) -> Path | None:
    """Give the directory ``new`` the name ``final``; all three are on one file system.

    Where the file system cannot exchange two names (NFS, some FUSE), ``final`` is absent for a
    moment; a kill in it leaves the old directory at ``aside``.

    Args:
        new: the complete directory, flushed to the disk.
        final: its name; a directory there is replaced.
        aside: a free name for the old directory, used where names cannot be exchanged.

    Returns:
        Where the old directory is now; None if there was none.
    """
    old: Path | None = None
    if final.is_dir():
        if exchange(new, final):
            old = new
        else:
            aside.parent.mkdir(parents=True, exist_ok=True)
            final.rename(aside)
            fsync_directory(aside.parent)
            new.rename(final)
            old = aside
    else:
        final.parent.mkdir(parents=True, exist_ok=True)
        new.rename(final)
    fsync_directory(final.parent)
    return old


def exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two paths atomically; False if that is not supported here.

    Raises:
        OSError: the kernel refuses for another reason.
    """
    rename = _renameat2()
    if rename is None:
        return False
    sys.audit("compressor.exchange", str(one), str(other))
    names = (os.fsencode(one), os.fsencode(other))
    if rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(one))


@cache
def _renameat2() -> Any:
    """Return the function of the C library (glibc 2.28, musl 1.2.4), or None."""
    if not sys.platform.startswith("linux"):
        return None
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is not None:
        function.argtypes = (
            ctypes.c_int,
            ctypes.c_char_p,
            ctypes.c_int,
            ctypes.c_char_p,
            ctypes.c_uint,
        )
    return function
