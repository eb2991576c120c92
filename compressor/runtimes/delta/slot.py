"""A folder with the model in use, which updates replace whole or not at all.

Beside the folder ``NAME`` lies ``NAME.updates``::

    state.json   the highest counter, and what is applied now and was before
    previous/    the last intact model before this one, for undo
    staged/      the next model, until it is complete
    lock

The next model is written into ``staged``, flushed, and exchanged with the folder in one rename. A
kill leaves the old model or the new one; the next command finishes what was begun.
"""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from compressor.artifacts.errors_from_os import writing
from compressor.artifacts.exchange import replace_directory
from compressor.artifacts.files import fsync_directory, fsync_tree, write_atomic
from compressor.artifacts.fingerprint import digest_file
from compressor.artifacts.locks import lock
from compressor.errors import DamagedArtifactError, UsageError
from compressor.foreign_files.json_files import read_json_record
from compressor.runtimes.delta.build import files_below
from compressor.runtimes.delta.package import digest_of_files

SCRATCH = "scratch"
"""Folder beside ``staged`` that a build may use; it is removed afterwards."""
_STATE = "state.json"


class Applied(BaseModel):
    """One update."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    counter: int
    package: str
    """Id of the package."""
    digest: str
    """Digest of the folder."""
    applied: str
    """UTC, ISO 8601."""
    signer: str | None
    """Key that signed the package; None if no signature was checked."""


class SlotState(BaseModel):
    """Content of ``state.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    highest: int = 0
    """Highest counter that was ever applied here; `undo` does not lower it."""
    highest_package: str | None = None
    """Id of the package that has it."""
    name: str | None = None
    """Name of the series that the counter counts."""
    current: Applied | None = None
    previous: Applied | None = None
    """None if there was no model before, or if it is not known any more."""
    can_undo: bool = False
    """True after an update, False after an undo: only one former model is kept."""
    pending: Literal["apply", "undo"] | None = None
    """A change that was begun: what ``following`` describes becomes current."""
    following: Applied | None = None
    was_intact: bool = True
    """False if an update replaces a folder that had changed since: it is not kept for undo."""

    def raised(self, counter: int, package: str) -> dict[str, object]:
        """Return the fields of the highest counter after a package with ``counter``."""
        if counter < self.highest:
            return {}
        return {"highest": counter, "highest_package": package}


class Slot:
    """The folder of a model that packages update.

    Every method but ``state`` needs the lock.
    """

    def __init__(self, folder: Path) -> None:
        """Take the folder; nothing is read or written.

        Raises:
            UsageError: it is the root of a file system.
        """
        self.folder = folder.absolute()
        if not self.folder.name:
            raise UsageError(f"{folder} cannot be replaced", remedy="choose another --out")
        self.home = self.folder.with_name(f"{self.folder.name}.updates")
        self.staged, self.previous = self.home / "staged", self.home / "previous"
        self._aside = self.home / "aside"

    @property
    def state(self) -> SlotState:
        """The record of the updates that were applied.

        Raises:
            DamagedArtifactError: the record cannot be read.
        """
        file = self.home / _STATE
        if not file.exists() and not file.is_symlink():
            return SlotState()
        return read_json_record(
            file, SlotState, DamagedArtifactError, remedy="remove the folder to start anew"
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the slot, with what an earlier command began finished or dropped.

        Raises:
            UsageError: the folder holds something that was not applied.
            StorageError: the folder cannot be written.
        """
        with writing(self.home):
            self.home.mkdir(parents=True, exist_ok=True)
        with lock(self.home / "lock"):
            self._recover()
            if self.state.current is None and self.folder.exists():
                raise UsageError(
                    f"{self.folder} exists and is not the result of a package",
                    remedy="choose another --out, or remove it",
                )
            yield

    def apply(self, update: Applied, build: Callable[[Path], None]) -> None:
        """Replace the model by the one that ``build`` writes into an empty folder.

        The model before is kept for ``undo``. One that has changed since it was applied is dropped,
        and the one before it stays.

        Raises:
            CompressError: as ``build``; the slot is then as before.
            StorageError: the disk is full, or the folder cannot be written.
        """
        with writing(self.staged):
            self.staged.mkdir()
        try:
            build(self.staged)
        except BaseException:
            self._clean()
            raise
        state = self.state
        change = {
            **state.raised(update.counter, update.package),
            "name": update.name,
            "pending": "apply",
            "following": update,
            "was_intact": state.current is None or self.is_intact(),
        }
        with writing(self.folder):
            fsync_tree(self.staged)
            self._write(state.model_copy(update=change))
            replace_directory(self.staged, self.folder, self._aside)
            self._finish()

    def undo(self) -> SlotState:
        """Put the model before the last update back, and return the new state.

        Raises:
            UsageError: there is nothing to undo.
            DamagedArtifactError: the former model has changed.
        """
        state = self.state
        if not state.can_undo:
            raise UsageError(
                f"{self.folder}: there is nothing to undo", remedy="an update can be undone once"
            )
        if state.previous is not None and _digest(self.previous) != state.previous.digest:
            raise DamagedArtifactError(
                f"{self.previous} is damaged: its content has changed",
                remedy="apply the package again that it came from",
            )
        with writing(self.folder):
            self._write(state.model_copy(update={"pending": "undo", "following": state.previous}))
            if state.previous is None:
                self.folder.rename(self.staged)
                fsync_directory(self.folder.parent)
            else:
                replace_directory(self.previous, self.folder, self._aside)
            self._finish()
        return self.state

    def note_counter(self, counter: int, package: str) -> None:
        """Raise the highest counter, for a package whose result is in use already."""
        state = self.state
        if counter > state.highest:
            with writing(self.home):
                self._write(state.model_copy(update=state.raised(counter, package)))

    def is_intact(self) -> bool:
        """Return True if the folder holds what was applied last."""
        current = self.state.current
        return current is not None and _digest(self.folder) == current.digest

    def _finish(self) -> None:
        """Name the former model, and record that the change that was begun is made.

        Each step may be repeated after a kill.
        """
        state = self.state
        change: dict[str, Applied | bool | None] = {
            "current": state.following,
            "pending": None,
            "following": None,
        }
        former = next((path for path in (self._aside, self.staged) if path.is_dir()), None)
        if state.pending == "undo":
            change |= {"previous": None, "can_undo": False}
        elif state.was_intact:
            if former is not None:
                _remove(self.previous)
                former.rename(self.previous)
                fsync_directory(self.home)
            change |= {"previous": state.current, "can_undo": True}
        self._write(state.model_copy(update=change))
        self._clean()

    def _recover(self) -> None:
        """Finish or drop the change that a killed command began."""
        state = self.state
        with writing(self.home):
            if state.pending is not None:
                if not self.folder.exists() and self._aside.is_dir():
                    self._aside.rename(self.folder)
                wanted = None if state.following is None else state.following.digest
                if _digest(self.folder) == wanted:
                    self._finish()
                    return
                self._write(state.model_copy(update={"pending": None, "following": None}))
            self._clean()

    def _clean(self) -> None:
        _remove(self.staged)
        _remove(self._aside)
        _remove(self.home / SCRATCH)
        if self.state.previous is None:
            _remove(self.previous)

    def _write(self, state: SlotState) -> None:
        write_atomic(self.home / _STATE, state.model_dump_json(indent=1).encode())


def check_applied(folder: Path) -> None:
    """Check that a folder holds what `apply` wrote; nothing is checked of any other folder.

    Raises:
        DamagedArtifactError: a file has changed since, or the record of updates cannot be read.
    """
    slot = Slot(folder)
    state = slot.state
    # A killed `apply` is finished by the next one: the folder is the old model or the new one.
    known = {update.digest for update in (state.current, state.following) if update is not None}
    if state.current is not None and _digest(slot.folder) not in known:
        raise DamagedArtifactError(
            f"{folder} is damaged: it is not what was applied ({state.current.name} "
            f"{state.current.counter})",
            remedy="apply its package again",
        )


def now() -> datetime.datetime:
    """Return the time in UTC."""
    return datetime.datetime.now(datetime.UTC)


def _digest(folder: Path) -> str | None:
    """Return the digest of all files below a folder, None if there is no folder."""
    if not folder.is_dir():
        return None
    files = files_below(folder)
    return digest_of_files({name: digest_file(path) for name, path in files.items()})


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
