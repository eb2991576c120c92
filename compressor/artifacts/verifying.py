"""Verify artifacts, stores and runs against their manifests and records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from compressor.artifacts.artifact import is_artifact, verified_artifact
from compressor.artifacts.run_folders import RECORD, run_folders
from compressor.artifacts.runs import RunRecord, damaged_files, is_run_of_store, load_run
from compressor.artifacts.store import Store
from compressor.errors import CompressError, DamagedArtifactError, UsageError


def verify_all(
    paths: Sequence[Path], also: Callable[[Path], None] = lambda _: None
) -> dict[Path, str | None]:
    """Return each artifact and each run with its problem, or None if it is intact.

    One that is removed while it is verified is left out.

    Args:
        paths: artifacts, stores, or runs.
        also: a further check of an artifact's folder that raises DamagedArtifactError.

    Raises:
        UsageError: a path is none of these.
    """
    problems: dict[Path, str | None] = {}
    for path in paths:
        folder = path.parent if path.name == RECORD else path
        if is_artifact(folder):
            problems[folder] = _artifact_problem(folder, None, also)
        elif (folder / RECORD).is_file() or is_run_of_store(folder):
            problems |= _verify_run(folder, also)
        else:
            problems |= _verify_store(path, also)
    return problems


def _verify_store(root: Path, also: Callable[[Path], None]) -> dict[Path, str | None]:
    artifacts = list(Store(root).artifacts())
    if not artifacts:
        raise UsageError(f"{root} is neither an artifact, nor a store or a run that holds one")
    problems = {path: _artifact_problem(path, None, also) for path in artifacts}
    problems |= {folder: _run_problem(folder)[0] for folder in run_folders(root)}
    return {path: problem for path, problem in problems.items() if not problem or path.exists()}


def _verify_run(folder: Path, also: Callable[[Path], None]) -> dict[Path, str | None]:
    problem, record = _run_problem(folder)
    problems = {folder: problem}
    root = folder.parent.parent
    for step in record.steps if record is not None else ():
        problems[root / step.artifact] = _artifact_problem(
            root / step.artifact, step.manifest, also
        )
    return problems


def _run_problem(folder: Path) -> tuple[str | None, RunRecord | None]:
    """Return what is wrong with a run's record and the files beside it; and the record."""
    while True:
        try:
            record = load_run(folder)
        except DamagedArtifactError as error:
            return error.what, None
        problems = damaged_files(folder, record)
        if not problems:
            return None, record
        try:
            if load_run(folder).digest == record.digest:
                return "\n".join(problems), record
        except DamagedArtifactError as error:
            return error.what, record


def _artifact_problem(path: Path, digest: str | None, also: Callable[[Path], None]) -> str | None:
    """Return what is wrong with an artifact; ``digest`` is that of its manifest in a run."""
    try:
        artifact = verified_artifact(path)
        also(path)
    except (DamagedArtifactError, UsageError) as error:
        return error.what
    except CompressError as error:
        return f"{path} cannot be verified: {error.what}"
    if digest not in {None, artifact.manifest.digest}:
        return f"{path} is intact, but its manifest has changed since the run"
    return None
