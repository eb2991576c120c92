"""Open files that others wrote: regular files alone, of bounded size.

A named pipe, a device or a socket in a file's place would hang, or never end. It is found before it
is opened, and the open file is checked again, so that a file that is replaced in between does not
hang either.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from compressor.errors import CompressError, StorageError
from compressor.foreign_files.limits import FileKind

LFS_POINTER = b"version https://git-lfs"
"""Start of the text that Git LFS leaves in place of a file that was not fetched."""
_LFS_REMEDY = "fetch the file itself: `git lfs pull`"
_COPY_REMEDY = "copy the file again"
_TYPES = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_WHILE_READING = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT})
OF_THE_MACHINE = frozenset(
    {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT}
)
"""Causes that lie in the machine, not in the file that was named."""


def file_problem(file: Path) -> str | None:
    """Return the reason that a path is not a regular file that can be read; None if it is one."""
    try:
        return _type_problem(file, file.stat().st_mode) or _access_problem(file)
    except (OSError, ValueError) as error:
        return _reason(file, error)


def is_regular(file: Path) -> bool:
    """Return True for a regular file; False for a path that no file can have too."""
    try:
        return file.is_file()
    except OSError:
        return False


def check_file(file: Path, error_type: type[CompressError], kind: FileKind | None = None) -> int:
    """Check a file before a library opens it by its path, and return its size in bytes.

    Args:
        file: the file.
        error_type: the class of the error.
        kind: the kind whose limit the size has to keep; None for files without one.

    Raises:
        CompressError: of ``error_type``: it is missing, no regular file, or too large.
        StorageError: the machine cannot read it.
    """
    if problem := file_problem(file):
        raise error_type(problem)
    with _os_errors(file, error_type):
        size = file.stat().st_size
    _check_size(file, size, kind, error_type)
    return size


def check_folder(folder: Path, error_type: type[CompressError], kind: FileKind) -> None:
    """Check the files of a folder before a library reads those that it likes.

    Weights (safetensors, ONNX and their data) are not limited, and pickles are never opened.

    Raises:
        CompressError: of ``error_type``: a file is no regular file, or a text is too large.
        StorageError: the machine cannot list the folder.
    """
    with _os_errors(folder, error_type):
        entries = sorted(folder.iterdir())
    for entry in entries:
        if entry.is_dir():
            continue
        is_text = entry.suffix in {".json", ".jinja", ".txt", ".model", ".yaml", ".py"}
        if entry.is_symlink() and not entry.exists() and not is_text:
            continue
        check_file(entry, error_type, kind if is_text else None)


@contextmanager
def open_file(file: Path, error_type: type[CompressError]) -> Iterator[BufferedReader]:
    """Open a regular file for reading bytes.

    Args:
        file: the file.
        error_type: the class of the error.

    Raises:
        CompressError: of ``error_type``: it is missing or no regular file, or may not be read.
        StorageError: the machine cannot read it.
    """
    if problem := file_problem(file):
        raise error_type(problem)
    with _os_errors(file, error_type):
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    with os.fdopen(descriptor, "rb") as handle:
        if problem := _type_problem(file, os.fstat(descriptor).st_mode):
            raise error_type(problem)
        try:
            yield handle
        except OSError as error:
            if error.errno not in _WHILE_READING:
                raise
            raise StorageError(f"cannot read {file}: {error.strerror or error}") from error


def read_bytes(
    file: Path,
    kind: FileKind,
    error_type: type[CompressError],
    remedy: str | None = _COPY_REMEDY,
) -> bytes:
    """Return the content of a file.

    Args:
        file: the file.
        kind: its kind, which limits its size.
        error_type: the class of the error.
        remedy: what the user can do about a file that is too large.

    Raises:
        CompressError: of ``error_type``: it is missing, no regular file, too large, or a pointer
            of Git LFS.
        StorageError: the machine cannot read it.
    """
    with open_file(file, error_type) as handle:
        _check_size(file, os.fstat(handle.fileno()).st_size, kind, error_type, remedy)
        content = handle.read(kind.most_bytes + 1)  # files of /proc have a size of 0
    _check_size(file, len(content), kind, error_type, remedy)
    refuse_lfs_pointer(content, str(file), error_type)
    return content


def read_text(file: Path, kind: FileKind, error_type: type[CompressError]) -> str:
    """Return the text of a file in UTF-8; errors as ``read_bytes``, and for other encodings."""
    return decode_utf8(read_bytes(file, kind, error_type), str(file), error_type)


def decode_utf8(
    content: bytes, where: str, error_type: type[CompressError], remedy: str | None = None
) -> str:
    """Return the text of bytes in UTF-8, without a byte order mark.

    Raises:
        CompressError: of ``error_type``: they are not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise error_type(
            f"{where} is not UTF-8: byte {error.start}", remedy=remedy or "save it as UTF-8"
        ) from error


def refuse_lfs_pointer(start: bytes, where: str, error_type: type[CompressError]) -> None:
    """Refuse the text that Git LFS leaves in place of a file.

    Raises:
        CompressError: of ``error_type``.
    """
    if start.startswith(LFS_POINTER):
        raise error_type(
            f"{where} is a Git LFS pointer, not the file it stands for", remedy=_LFS_REMEDY
        )


def _check_size(
    file: Path,
    size: int,
    kind: FileKind | None,
    error_type: type[CompressError],
    remedy: str | None = _COPY_REMEDY,
) -> None:
    if kind is not None and size > kind.most_bytes:
        raise error_type(
            f"{file} has {size} bytes or more; {kind.name} of at most {kind.most_bytes} are read",
            remedy=kind.remedy or remedy,
        )


def _type_problem(file: Path, mode: int) -> str | None:
    if stat.S_ISREG(mode):
        return None
    kind = next((name for test, name in _TYPES if test(mode)), "no regular file")
    return f"{file} is {kind}, expected a regular file"


def _access_problem(file: Path) -> str | None:
    return None if os.access(file, os.R_OK) else f"{file} cannot be read: no permission"


def _reason(file: Path, error: OSError | ValueError) -> str:
    if isinstance(error, ValueError):  # a null byte
        return f"{file} is no path: {error}"
    if error.errno in {errno.ENOENT, errno.ENOTDIR}:
        if file.is_symlink():
            return f"{file} is a link to {file.readlink()}, which does not exist"
        return f"{file} does not exist"
    return f"{file} cannot be read: {error.strerror or error}"


@contextmanager
def _os_errors(file: Path, error_type: type[CompressError]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno is None or error.errno in OF_THE_MACHINE:
            raise StorageError(f"cannot read {file}: {error.strerror or error}") from error
        raise error_type(_reason(file, error)) from error
