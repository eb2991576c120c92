"""`gc`: remove the artifacts that no pipeline's last run needs, while other commands run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from compressor.artifacts.artifact import open_artifact
from compressor.artifacts.files import size_bytes
from compressor.artifacts.run_folders import pipeline_of, run_folders
from compressor.artifacts.runs import load_run
from compressor.artifacts.sessions import STAGING, is_owned, live_sessions
from compressor.artifacts.store import DAMAGED, Store
from compressor.errors import CompressError, DamagedArtifactError

_SHORT_ID = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Collection:
    """Result of `gc`."""

    removed: dict[Path, int]
    """Path to its size in bytes."""
    notes: tuple[str, ...]
    """Damaged records and artifacts, and what that means for what is kept."""
    blocked: bool
    """True if damage hides what a pipeline's last run needs: no artifact was removed."""


def collect(store: Store, *, dry_run: bool) -> Collection:
    """Remove what no pipeline's last run and no running command needs.

    These are artifacts that are neither in such a run nor ancestors of one that is, the leftovers
    of steps that nobody builds, and damaged artifacts.

    Args:
        store: the store.
        dry_run: True to remove nothing.

    Raises:
        StorageError: the store is not writable.
    """
    if dry_run:
        return _collect(store, dry_run=True)
    store.check_writable()
    with store.session():
        return _collect(store, dry_run=False)


def _collect(store: Store, *, dry_run: bool) -> Collection:
    keep, notes, blocked = _needed_by_runs(store.root)
    removed: dict[Path, int] = {}
    for path, artifact_id in _candidates(store, keep, notes, blocked=blocked):
        with _claimed(store, artifact_id) as free:
            if free and path.exists():
                size = size_bytes(path, include_links=False)
                if not dry_run:
                    store.remove(path)
                removed[path] = size
    return Collection(removed, tuple(notes), blocked)


def _needed_by_runs(root: Path) -> tuple[set[str], list[str], bool]:
    """Return the ids in each pipeline's last record, notes, and True if such a record is damaged.

    An older record that is damaged hides nothing.
    """
    latest = {pipeline_of(folder): folder for folder in run_folders(root)}
    keep: set[str] = set()
    notes: list[str] = []
    blocked = False
    for pipeline, folder in latest.items():
        try:
            keep |= {step.id for step in load_run(folder).steps}
        except DamagedArtifactError as error:
            blocked = True
            notes.append(
                f"{error.what}: it is the last run of {pipeline}, and may need any artifact, so "
                "none was removed; run the pipeline again, or remove the record"
            )
    return keep, notes, blocked


def _candidates(
    store: Store, keep: set[str], notes: list[str], *, blocked: bool
) -> Iterator[tuple[Path, str]]:
    """Yield the paths that may go, each with the id under which it is locked, or its start."""
    manifests = {}
    for path in store.artifacts():
        try:
            manifests[path] = open_artifact(path).manifest
        except CompressError as error:
            notes.append(f"{error.what}: kept; the next run that needs it sets it aside")
    parents = {manifest.id: set(manifest.parents.values()) for manifest in manifests.values()}
    sessions = live_sessions(store.root)
    if None in sessions.values():
        notes.append("the list of a running command cannot be read: no artifact was removed")
    needed = with_ancestors(keep.union(*(ids or () for ids in sessions.values())), parents)
    if not blocked:
        yield from (
            (path, manifest.id) for path, manifest in manifests.items() if manifest.id not in needed
        )
    for folder in (STAGING, DAMAGED):
        for path in sorted((store.root / folder).glob("*")):
            if is_owned(path) is None:
                yield path, path.name if _SHORT_ID.fullmatch(path.name) else ""


def with_ancestors(ids: set[str], parents: dict[str, set[str]]) -> set[str]:
    """Return the ids and those of all their ancestors."""
    needed, frontier = set(ids), set(ids)
    while frontier:
        frontier = set().union(*(parents.get(id_, set()) for id_ in frontier)) - needed
        needed |= frontier
    return needed


@contextmanager
def _claimed(store: Store, artifact_id: str) -> Iterator[bool]:
    """Lock an artifact, and yield True if no running command has it or needs it.

    The sessions are read once more under the lock: a command that starts now waits for it.
    """
    if not artifact_id:
        yield True
        return
    with store.try_lock(artifact_id) as held:
        needed = held and any(
            ids is None or any(id_.startswith(artifact_id) for id_ in ids)
            for ids in live_sessions(store.root).values()
        )
        yield held and not needed
