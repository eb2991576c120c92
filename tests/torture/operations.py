"""See, stop and interleave the file operations of a command, without hooks in the program.

``sys.addaudithook`` reports every operation of CPython that changes files, before it happens.
``os.fsync`` is wrapped as well. Writes of C++ libraries are not seen; the toy pipeline has none.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CHANGES = frozenset(
    {
        "os.rename",
        "os.remove",
        "os.mkdir",
        "os.rmdir",
        "os.link",
        "os.symlink",
        "os.truncate",
        "os.utime",
        "os.chmod",
        "compressor.exchange",
    }
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
KILLED = 137


def watch(below: Path, before: Callable[[str, tuple[Any, ...]], None]) -> None:
    """Call ``before`` ahead of every operation that changes a file below a folder."""
    root = str(below.resolve())
    busy = False

    def report(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal busy
        if busy:
            return
        busy = True
        try:
            before(event, arguments)
        finally:
            busy = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        is_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES
        if (event in _CHANGES or is_write) and _is_below(arguments[0], root):
            report("write" if is_write else event, arguments)

    fsync = os.fsync

    def watched_fsync(descriptor: int) -> None:
        path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if _is_below(path, root):
            report("fsync", (path,))
        fsync(descriptor)
        if _is_below(path, root):
            report("synced", (path,))

    os.fsync = watched_fsync
    sys.addaudithook(hook)


def _is_below(path: Any, root: str) -> bool:
    if isinstance(path, int):
        return False
    return _absolute(path).startswith(f"{root}/")


def _absolute(path: Any) -> str:
    return str(Path(os.fsdecode(path)).absolute())


class Operations:
    """Count operations, and act on the one of a number."""

    def __init__(self, at: int = -1, act: Callable[[], None] = lambda: None) -> None:
        self.count, self._at, self._act = 0, at, act

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Count an operation."""
        if event == "synced":
            return
        if self.count == self._at:
            self._act()
        self.count += 1


class UnsyncedFiles:
    """The files whose content would be lost if the power failed now."""

    def __init__(self) -> None:
        self.paths: set[str] = set()

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Follow an operation that is about to happen."""
        first = _absolute(arguments[0])
        if event == "write":
            self.paths.add(first)
        elif event in {"synced", "os.remove"}:
            self.paths.discard(first)
        elif event == "os.rename":
            self._move({first: _absolute(arguments[1])})
        elif event == "compressor.exchange":
            second = _absolute(arguments[1])
            self._move({first: second, second: first})

    def _move(self, names: dict[str, str]) -> None:
        moved = set()
        for path in self.paths:
            for old, new in names.items():
                if path == old or path.startswith(f"{old}/"):
                    path = new + path[len(old) :]
                    break
            moved.add(path)
        self.paths = moved

    def lose(self) -> None:
        """Empty the files, as a file system does that has written their names only."""
        for path in map(Path, self.paths):
            if path.is_file() and not path.is_symlink():
                os.truncate(path, 0)


def end_before(number: int, below: Path, *, power: bool) -> None:
    """End this process with the code ``KILLED`` ahead of an operation below a folder.

    Args:
        number: the operation.
        below: the folder.
        power: True to lose what was written and not flushed as well.
    """
    unsynced = UnsyncedFiles()

    def end() -> None:
        if power:
            unsynced.lose()
        os._exit(KILLED)

    operations = Operations(number, end)

    def follow(event: str, arguments: tuple[Any, ...]) -> None:
        operations(event, arguments)
        unsynced(event, arguments)

    watch(below, follow)
