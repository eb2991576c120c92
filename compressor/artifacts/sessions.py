"""Sessions: commands that write to a store, the artifacts they need, and their temporary folders.

A session is a file ``.locks/session-<token>`` that its process locks (flock) until it ends. It
lists the ids that the command needs, which `gc` keeps. The session's temporary folders are
``.staging/<token>-…``: with the file's lock free, the writer is dead, and the next session removes
them. Tokens are random, so that neither threads nor machines with a shared disk collide.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO, Any

from compressor.artifacts.errors_from_os import writing
from compressor.artifacts.files import fsync_directory, lock_file

LOCKS, STAGING = ".locks", ".staging"
_PREFIX = "session-"
_UNNAMED = ".session-"
"""A session that is being written; its lock is held as well."""
_OWNED = re.compile(r"([0-9a-f]{16})-\d+-([a-z]+)")
_REPLACED = "replaced"


class Session:
    """One running command on the store at ``root``."""

    def __init__(self, root: Path, token: str) -> None:
        self.root, self.token = root, token
        self._numbers = count()

    def temporary(self, purpose: str) -> Path:
        """Return a path in ``.staging`` that no other writer uses; nothing is created there."""
        return self.root / STAGING / f"{self.token}-{next(self._numbers)}-{purpose}"

    def aside(self, path: Path) -> Path:
        """Return a path for a directory of the store that is being replaced.

        If this process dies before the new one has its name, the next session moves it back.
        """
        return self.temporary(_REPLACED) / path.relative_to(self.root)


@contextmanager
def open_session(root: Path, ids: Iterable[str] = ()) -> Iterator[Session]:
    """Start a session: `gc` keeps the artifacts ``ids`` and their ancestors until it ends.

    The leftovers of sessions whose process has died are removed first.

    Raises:
        StorageError: the store is not writable, or this platform has no flock.
    """
    session = Session(root, secrets.token_hex(8))
    with writing(root):
        for folder in (LOCKS, STAGING):
            (root / folder).mkdir(parents=True, exist_ok=True)
        sweep(root)
        handle = _create(root, session.token, sorted(set(ids)))
    try:
        yield session
    finally:
        with handle, writing(root):
            for path in (root / STAGING).glob(f"{session.token}-*"):
                _remove(path)
            (root / LOCKS / f"{_PREFIX}{session.token}").unlink(missing_ok=True)


@contextmanager
def keep(needed: Mapping[Path, Iterable[str]]) -> Iterator[None]:
    """Have `gc` keep artifacts while a command reads them.

    A folder without sessions, such as one of copies, or one that this process may not write, is
    read as it is.

    Args:
        needed: ids of artifacts by the folder of their store.

    Raises:
        StorageError: a session cannot be written.
    """
    with ExitStack() as sessions:
        for root, ids in needed.items():
            if all(os.access(root / name, os.W_OK) for name in (LOCKS, STAGING)):
                sessions.enter_context(open_session(root, ids))
        yield


def _create(root: Path, token: str, ids: list[str]) -> IO[Any]:
    """Write and lock a session's file; it is complete and locked before it has its name."""
    content = {"ids": ids, "process": os.getpid(), "host": socket.gethostname()}
    unnamed = root / LOCKS / f"{_UNNAMED}{token}"
    while True:
        handle = unnamed.open("xb", buffering=0)
        try:
            lock_file(handle, wait=True)
            if os.fstat(handle.fileno()).st_nlink == 0:  # swept before it was locked
                handle.close()
                continue
            handle.write(json.dumps(content).encode())
            unnamed.rename(root / LOCKS / f"{_PREFIX}{token}")
        except BaseException:
            handle.close()
            raise
        return handle


def live_sessions(root: Path) -> dict[str, frozenset[str] | None]:
    """Return the ids that each running session needs; None if its file cannot be read.

    The files of dead sessions are removed.
    """
    live: dict[str, frozenset[str] | None] = {}
    for path in sorted((root / LOCKS).glob("*session-*")):
        if not path.name.startswith((_PREFIX, _UNNAMED)):
            continue
        token = path.name.rpartition("-")[2]
        try:
            with _open(path) as handle:
                if not lock_file(handle, wait=False):
                    live[token] = _ids(handle)
                    continue
                with suppress(OSError):
                    path.unlink(missing_ok=True)
        except FileNotFoundError:
            continue
        except OSError:  # a folder, a link, or a file that its user alone may read
            live[token] = None
    return live


def _open(path: Path) -> IO[bytes]:
    """Open a session's file, for writing where that is allowed: NFS locks no others."""
    flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.fdopen(os.open(path, os.O_RDWR | flags), "r+b", buffering=0)
    except PermissionError:
        return os.fdopen(os.open(path, os.O_RDONLY | flags), "rb", buffering=0)


def _ids(handle: IO[bytes]) -> frozenset[str] | None:
    try:
        ids = json.loads(handle.read())["ids"]
        return frozenset(ids) if all(isinstance(id_, str) for id_ in ids) else None
    except (OSError, ValueError, RecursionError, TypeError, KeyError):
        return None


def sweep(root: Path) -> None:
    """Remove the temporary folders of dead sessions; undo a replacement that one left halfway."""
    # The folders first: a session's file exists before its folders do.
    owned = [
        (path, match)
        for path in sorted((root / STAGING).iterdir())
        if (match := _OWNED.fullmatch(path.name))
    ]
    live = live_sessions(root)
    for path, match in owned:
        if match[1] in live:
            continue
        if match[2] == _REPLACED:
            _restore(root, path)
        _remove(path)


def _restore(root: Path, aside: Path) -> None:
    """Move replaced directories back to names that are still free."""
    for pattern in ("*", "runs/*"):
        for old in aside.glob(pattern):
            final = root / old.relative_to(aside)
            if old != aside / "runs" and not final.exists():
                with suppress(OSError):  # another session was faster
                    old.rename(final)
                    fsync_directory(final.parent)


def is_owned(path: Path) -> str | None:
    """Return the token of the session that a path in ``.staging`` belongs to, if it has one."""
    match = _OWNED.fullmatch(path.name)
    return match[1] if match else None


def _remove(path: Path) -> None:
    """Remove a file or folder that other sessions may be removing as well."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(FileNotFoundError):
            path.unlink()
