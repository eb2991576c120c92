"""Verify artifacts, stores and runs against their manifests and records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from compressor.artifacts.runs import RECORD, load_run
from compressor.artifacts.store import MANIFEST, Store, open_artifact, verify
from compressor.errors import DamagedArtifactError, UsageError


def verify_all(
    paths: Sequence[Path], also: Callable[[Path], None] = lambda _: None
) -> dict[Path, str | None]:
    """Return each artifact and its problem, or None if it is intact.

    Args:
        paths: artifacts, stores, or runs.
        also: a further check of an artifact's folder that raises DamagedArtifactError.

    Raises:
        UsageError: a path is none of these.
    """
    problems: dict[Path, str | None] = {}
    for path in paths:
        targets = _targets(path)
        if not targets:
            raise UsageError(f"{path} is neither an artifact, nor a store or a run that holds one")
        for target, digest in targets.items():
            try:
                artifact = open_artifact(target)
                verify(artifact)
                also(target)
            except DamagedArtifactError as error:
                problems[target] = error.what
            else:
                changed = digest not in {None, artifact.manifest.digest}
                what = f"{target} is intact, but its manifest has changed since the run"
                problems[target] = what if changed else None
    return problems


def _targets(path: Path) -> dict[Path, str | None]:
    """Return the artifacts at a path, with the manifest digest that a run recorded for each."""
    if (path / MANIFEST).is_file():
        return {path: None}
    if (path / RECORD).is_file():
        root = path.parent.parent
        return {root / step.artifact: step.manifest for step in load_run(path).steps}
    return dict.fromkeys(Store(path).artifacts())
