"""Sizes, atomic writes, fsync, copy-on-write copies and file locks."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from compressor.errors import StorageError

try:
    import fcntl
except ImportError:  # not POSIX: `plan`, `validate` and `show` need no locks
    fcntl = None  # type: ignore[assignment]

_LONGEST_STEM = 50
"""Characters of a name that its temporary file repeats; names have at most 255 bytes."""
_FICLONE = 0x40049409  # linux/fs.h: share the blocks copy-on-write (Btrfs, XFS, bcachefs)


def size_bytes(path: Path, *, include_links: bool = True) -> int:
    """Return the bytes of a file, or of all files below a folder.

    Args:
        path: a file or a folder.
        include_links: count files behind symbolic links: the size of a model, whose files may be
            links into a cache. Without them, it is the space that deleting ``path`` frees.
    """
    if path.is_file():
        return path.stat().st_size
    return sum(
        file.stat().st_size
        for file in path.rglob("*")
        if file.is_file() and (include_links or not file.is_symlink())
    )


def fsync_file(path: Path) -> None:
    """Flush a file's content to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def fsync_directory(path: Path) -> None:
    """Flush a directory's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(root: Path) -> None:
    """Flush every file and directory below ``root`` to the disk, children before parents."""
    for folder, _, names in os.walk(root, topdown=False):
        for name in names:
            fsync_file(Path(folder, name))
        fsync_directory(Path(folder))


def write_atomic(path: Path, content: bytes) -> None:
    """Write ``path`` atomically: readers, and kills, find the old content or the new one."""
    with atomic_file(path) as file:
        file.write(content)


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that gets the name ``path`` when it is complete and on the disk.

    Until then it has a name of its own beside it, and is locked: what writers that died have left
    there is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() and not path.is_symlink():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    _remove_leftovers(path)
    temporary, file = _open_temporary(path)
    with file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    fsync_directory(path.parent)


def _open_temporary(path: Path) -> tuple[Path, IO[bytes]]:
    """Create a file beside ``path`` under a name that no other writer uses, and lock it."""
    while True:
        name = f".{path.name[:_LONGEST_STEM]}.{secrets.token_hex(8)}.tmp"
        file = (temporary := path.with_name(name)).open("xb")
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return temporary, file
        file.close()  # another writer removed it before it was locked


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files for ``path`` whose writers have died: nobody has locked them."""
    if fcntl is None:
        return
    leftover = re.compile(re.escape(f".{path.name[:_LONGEST_STEM]}.") + r"[0-9a-f]+\.tmp")
    for file in path.parent.iterdir():
        if not leftover.fullmatch(file.name):
            continue
        try:
            with file.open("r+b") as handle:
                if lock_file(handle, wait=False):
                    file.unlink(missing_ok=True)
        except OSError:  # renamed meanwhile, or another user's
            continue


def copy_file(source: Path, target: Path) -> None:
    """Copy a file, sharing its blocks where the file system can.

    Links are never made: onnx >= 1.21 refuses linked external data.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as reader, target.open("wb") as writer:
        if not _share_blocks(reader, writer):
            shutil.copyfileobj(reader, writer, 1 << 22)


def _share_blocks(reader: IO[bytes], writer: IO[bytes]) -> bool:
    """Clone a file's blocks copy-on-write; return False if that is not supported."""
    if fcntl is None:
        return False
    try:
        fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
    except OSError:
        return False
    return True


def require_file_locks() -> None:
    """Check that this platform has flock(2), which keeps concurrent runs on one store apart.

    Raises:
        StorageError: The platform has no flock.
    """
    if fcntl is None:
        raise StorageError(
            "building artifacts needs POSIX file locks (flock), which this platform lacks",
            remedy="run on Linux; only `plan`, `validate` and `show` work without it",
        )


def lock_file(handle: IO[Any], *, wait: bool) -> bool:
    """Take the exclusive lock of an open file; the kernel releases it when the file is closed.

    Returns:
        True if the lock is held now; False if another process holds it and ``wait`` is False.

    Raises:
        StorageError: The platform has no flock.
    """
    require_file_locks()
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
