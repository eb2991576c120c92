"""Measurements that gate rules check: of an artifact, or of a ladder row whose artifact is gone."""

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
"""File beside the ladder: step to ``Samples``. Both files are a baseline that can be committed."""


class Samples(BaseModel):
    """Per-sample values of a model's accuracy metrics."""

    of: str
    """Identifies the samples: equal for the same samples in the same order."""
    values: dict[str, tuple[float | int, ...]]
    """Metric to one value per sample."""


def samples_of(artifact: Artifact) -> Samples | None:
    """Read the per-sample values from ``reports/accuracy.json``; None if accuracy was not measured.

    Raises:
        DamagedArtifactError: the report cannot be read.
    """
    file = artifact.reports / "accuracy.json"
    if not file.is_file():
        return None
    try:
        report = AccuracyReport.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise DamagedArtifactError(f"{file} is damaged: {str(error).splitlines()[0]}") from error
    samples = artifact.manifest.measured
    if report.labels:
        samples = digest_json([report.data, list(report.labels)])
    values = {name: tuple(map(_compact, column)) for name, column in report.values.items()}
    return Samples(of=samples, values=values)


def _compact(value: float) -> float | int:
    """Return 1 for 1.0: most values are 0 or 1, and the file is committed."""
    return int(value) if value.is_integer() else value


@dataclass(frozen=True)
class MeasuredModel:
    """The metrics of one step of a run."""

    name: str
    """Name of the step."""
    id: str
    metrics: Mapping[str, Metric]
    artifact: Artifact | None
    """None if only a ladder row is left."""
    recorded_samples: Samples | None = None
    """Per-sample values from the run's folder, used if the artifact is gone."""

    @classmethod
    def of(cls, artifact: Artifact, name: str | None = None) -> MeasuredModel:
        """Return the metrics of an artifact; ``size_bytes`` is always among them."""
        manifest = artifact.manifest
        size = Metric(
            name="size_bytes", value=manifest.model_bytes, unit="bytes", better="lower", samples=1
        )
        metrics = {size.name: size} | {metric.name: metric for metric in manifest.metrics}
        return cls(name or manifest.step, manifest.id, metrics, artifact)

    @cached_property
    def samples(self) -> Samples | None:
        """Per-sample values, if they are known."""
        return self.recorded_samples if self.artifact is None else samples_of(self.artifact)


class _Row(BaseModel):
    step: str
    id: str
    metrics: dict[str, Metric]


def measured_models_at(path: Path) -> dict[str, MeasuredModel]:
    """Return step to metrics in run order.

    Args:
        path: an artifact, a run, a store (its last run), or a ladder.json. The ladder is used if a
            run's artifacts are gone.

    Raises:
        UsageError: the path is none of these.
        DamagedArtifactError: a record cannot be read.
    """
    if (path / MANIFEST).is_file():
        model = MeasuredModel.of(open_artifact(path))
        return {model.name: model}
    if path.suffix == ".json" and path.name != RECORD:
        return measured_models_of_ladder(path)
    if (path / LADDER).is_file() and not (path / RECORD).is_file():
        return measured_models_of_ladder(path)
    folder, record = find_run(path)
    root = folder.parent.parent
    if all((root / step.artifact / MANIFEST).is_file() for step in record.steps):
        return {
            step.name: MeasuredModel.of(open_artifact(root / step.artifact), step.name)
            for step in record.steps
        }
    return measured_models_of_ladder(folder)


def find_counterpart(baseline: Mapping[str, MeasuredModel], step: str) -> MeasuredModel | None:
    """Return the model that a step is compared with.

    This is the baseline's step of the same name; or its only model, whatever the name.
    """
    return next(iter(baseline.values())) if len(baseline) == 1 else baseline.get(step)


def measured_models_of_ladder(path: Path) -> dict[str, MeasuredModel]:
    """Return step to metrics from a ladder.json or its folder; errors as ``measured_models_at``."""
    file = path / LADDER if path.is_dir() else path
    if not file.is_file():
        raise UsageError(
            f"{file} does not exist",
            remedy="name an artifact, a run, a store, or a run's ladder.json",
        )
    try:
        rows = [_Row.model_validate(row) for row in json.loads(file.read_bytes())["rows"]]
    except (ValueError, KeyError, TypeError) as error:
        first_line = str(error).splitlines()[0]
        raise DamagedArtifactError(f"{file} is not a ladder: {first_line}") from error
    if not rows:
        raise DamagedArtifactError(f"{file} has no rows")
    samples = _read_samples(file.with_name(SAMPLES))
    return {
        row.step: MeasuredModel(row.step, row.id, row.metrics, None, samples.get(row.step))
        for row in rows
    }


def _read_samples(file: Path) -> dict[str, Samples]:
    if not file.is_file():
        return {}
    try:
        return TypeAdapter(dict[str, Samples]).validate_json(file.read_bytes())
    except ValidationError as error:
        raise DamagedArtifactError(f"{file} is damaged: {str(error).splitlines()[0]}") from error
