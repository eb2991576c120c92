"""Artifacts, stores and runs held against what was written down of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from compressor.artifacts.runs import RECORD, load_run
from compressor.artifacts.store import MANIFEST, Store, open_artifact, verify
from compressor.errors import DamagedArtifactError, UsageError


def verify_all(
    paths: Sequence[Path], also: Callable[[Path], None] = lambda _: None
) -> dict[Path, str | None]:
    """Each artifact among ``paths``, or in the stores and runs among them, to what is wrong with it (None: nothing).

    ``also`` looks at an artifact's folder in its own way, and raises DamagedArtifactError.

    Raises:
        UsageError: a path is none of these.
    """
    found: dict[Path, str | None] = {}
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
                found[target] = error.what
            else:
                changed = digest not in {None, artifact.manifest.digest}
                found[target] = (
                    f"{target} is whole, but not as the run left it: its manifest is another"
                    if changed
                    else None
                )
    return found


def _targets(path: Path) -> dict[Path, str | None]:
    """The artifacts that a path stands for, and the digest of its manifest that a run recorded."""
    if (path / MANIFEST).is_file():
        return {path: None}
    if (path / RECORD).is_file():
        root = path.parent.parent
        return {root / step.artifact: step.manifest for step in load_run(path).steps}
    return dict.fromkeys(Store(path).artifacts())
