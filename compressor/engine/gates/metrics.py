"""The figures that a gate judges: of an artifact, or of a row of a ladder that is all that is left of one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import BaseModel, TypeAdapter, ValidationError

from compressor.artifacts.fingerprint import digest_json
from compressor.artifacts.manifest import Metric
from compressor.artifacts.runs import RECORD, find_run
from compressor.artifacts.store import MANIFEST, Artifact, open_artifact
from compressor.errors import DamagedArtifactError, UsageError
from compressor.evaluation.records import AccuracyReport

LADDER = "ladder.json"
SAMPLES = "samples.json"
"""Beside the ladder: step to ``Samples``. Both together are a baseline that can be committed."""


class Samples(BaseModel):
    """What each sample was worth to a model."""

    of: str
    """Equal for equal samples in the same order."""
    values: dict[str, tuple[float | int, ...]]
    """By metric."""


def samples_of(artifact: Artifact) -> Samples | None:
    """From ``reports/accuracy.json``; None where accuracy was not measured.

    Raises:
        DamagedArtifactError: it cannot be read.
    """
    file = artifact.reports / "accuracy.json"
    if not file.is_file():
        return None
    try:
        report = AccuracyReport.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise DamagedArtifactError(f"{file} is damaged: {str(error).splitlines()[0]}") from error
    of = (
        digest_json([report.data, list(report.labels)])
        if report.labels
        else artifact.manifest.measured
    )
    values = {name: tuple(map(_shortest, some)) for name, some in report.values.items()}
    return Samples(of=of, values=values)


def _shortest(value: float) -> float | int:
    """1 rather than 1.0, which half of a file of rights and wrongs would be."""
    return int(value) if value.is_integer() else value


@dataclass(frozen=True)
class Figures:
    """What was measured of one model."""

    name: str
    """The step's."""
    id: str
    metrics: Mapping[str, Metric]
    artifact: Artifact | None
    """None where only its figures are there."""
    kept: Samples | None = None
    """What a run's folder keeps of each sample, for when the artifact is not there."""

    @classmethod
    def of(cls, artifact: Artifact, name: str | None = None) -> Figures:
        """Those of an artifact; ``size_bytes`` also of one that was not measured, as its manifest knows it."""
        manifest = artifact.manifest
        size = Metric(
            name="size_bytes", value=manifest.model_bytes, unit="bytes", better="lower", samples=1
        )
        metrics = {size.name: size} | {metric.name: metric for metric in manifest.metrics}
        return cls(name or manifest.step, manifest.id, metrics, artifact)

    @cached_property
    def samples(self) -> Samples | None:
        """Sample by sample, where that is known."""
        return self.kept if self.artifact is None else samples_of(self.artifact)


class _Row(BaseModel):
    step: str
    id: str
    metrics: dict[str, Metric]


def figures_at(path: Path) -> dict[str, Figures]:
    """Step to figures, in run order: of an artifact's directory, a run's, a store's last run, or a ``ladder.json``.

    A run whose artifacts are not there any more still has its ladder.

    Raises:
        UsageError: there is none of these.
        DamagedArtifactError: it cannot be read.
    """
    if (path / MANIFEST).is_file():
        one = Figures.of(open_artifact(path))
        return {one.name: one}
    if path.suffix == ".json" and path.name != RECORD:
        return figures_of_ladder(path)
    if (path / LADDER).is_file() and not (path / RECORD).is_file():
        return figures_of_ladder(path)
    folder, record = find_run(path)
    root = folder.parent.parent
    if all((root / step.artifact / MANIFEST).is_file() for step in record.steps):
        return {
            step.name: Figures.of(open_artifact(root / step.artifact), step.name)
            for step in record.steps
        }
    return figures_of_ladder(folder)


def counterpart(baseline: Mapping[str, Figures], step: str) -> Figures | None:
    """What a step is compared with: the step of that name, or a single artifact whatever it is called; else None."""
    return next(iter(baseline.values())) if len(baseline) == 1 else baseline.get(step)


def figures_of_ladder(path: Path) -> dict[str, Figures]:
    """Step to figures, from a ``ladder.json`` or the folder that holds one. Raises as ``figures_at``."""
    file = path / LADDER if path.is_dir() else path
    if not file.is_file():
        raise UsageError(
            f"{file} is not there",
            remedy="name an artifact, a run, a store, or a run's ladder.json",
        )
    try:
        rows = [_Row.model_validate(row) for row in json.loads(file.read_bytes())["rows"]]
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedArtifactError(f"{file} is no ladder: {str(error).splitlines()[0]}") from error
    if not rows:
        raise DamagedArtifactError(f"{file} has no rows")
    kept = _samples(file.with_name(SAMPLES))
    return {
        row.step: Figures(row.step, row.id, row.metrics, None, kept.get(row.step)) for row in rows
    }


def _samples(file: Path) -> dict[str, Samples]:
    if not file.is_file():
        return {}
    try:
        return TypeAdapter(dict[str, Samples]).validate_json(file.read_bytes())
    except ValidationError as error:
        raise DamagedArtifactError(f"{file} is damaged: {str(error).splitlines()[0]}") from error
