"""Measurements that gate rules check: of an artifact, or of a ladder row whose artifact is gone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from pydantic import BaseModel, TypeAdapter, ValidationError

from compressor.artifacts.artifact import Artifact, is_artifact
from compressor.artifacts.fingerprint import digest_json
from compressor.artifacts.manifest import Metric
from compressor.artifacts.records import open_with_reports, read_report, read_unlisted
from compressor.artifacts.run_folders import LADDER, RECORD
from compressor.artifacts.runs import (
    SAMPLES,
    RunRecord,
    find_run,
    is_run_of_store,
    read_run_file,
)
from compressor.artifacts.trust import require_trust
from compressor.errors import DamagedArtifactError, UsageError
from compressor.evaluation.records import AccuracyReport
from compressor.foreign_files.json_files import parse_json

ACCURACY_FILE = "reports/accuracy.json"


class Samples(BaseModel):
    """Per-sample values of a model's accuracy metrics."""

    of: str
    """Identifies the samples: equal for the same samples in the same order."""
    values: dict[str, tuple[float | int, ...]]
    """Metric to one value per sample."""


def samples_of(artifact: Artifact) -> Samples | None:
    """Read the per-sample values from ``reports/accuracy.json``; None if accuracy was not measured.

    Raises:
        DamagedArtifactError: the report is damaged.
    """
    report = read_report(artifact, ACCURACY_FILE, AccuracyReport)
    if report is None:
        return None
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
    """Per-sample values from the run's folder, used if its artifact is gone or measured again."""
    from_ladder: bool = False
    """True if the metrics are those of a ladder row."""

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
        if self.from_ladder or self.artifact is None:
            return self.recorded_samples
        return samples_of(self.artifact)


class RecordedStep(BaseModel):
    """A row of a ladder, as far as gates and the history read it."""

    step: str
    id: str
    metrics: dict[str, Metric]


def measured_models_at(path: Path) -> dict[str, MeasuredModel]:
    """Return step to metrics in run order.

    Args:
        path: an artifact, a run, a store (its last run), or a ladder.json. A run's metrics are
            those that it recorded: if an artifact is gone or was measured again since, they are
            read from the ladder.

    Raises:
        UsageError: the path is none of these.
        DamagedArtifactError: a record is damaged.
    """
    if is_artifact(path):
        model = MeasuredModel.of(open_with_reports(path))
        return {model.name: model}
    if path.suffix == ".json" and path.name != RECORD:
        return measured_models_of_ladder(path)
    if _is_bare_ladder(path):
        return measured_models_of_ladder(path)
    folder, record = find_run(path)
    return measured_models_of_run(folder, record)


def measured_models_of_run(folder: Path, record: RunRecord) -> dict[str, MeasuredModel]:
    """Return step to metrics of a run; errors as ``measured_models_at``."""
    root = folder.parent.parent
    artifacts = {step.name: _open(root / step.artifact, step.id) for step in record.steps}
    recorded = {
        step.name
        for step in record.steps
        if (artifact := artifacts[step.name]) is not None
        and artifact.manifest.digest == step.manifest
    }
    ladder = {} if len(recorded) == len(artifacts) else measured_models_of_ladder(folder)
    models = {}
    for name, artifact in artifacts.items():
        if artifact is not None and name in recorded:
            models[name] = MeasuredModel.of(artifact, name)
        elif name in ladder:
            models[name] = replace(ladder[name], artifact=artifact)
        else:
            raise DamagedArtifactError(f"{folder / LADDER} is damaged: it has no step {name!r}")
    return models


def _is_bare_ladder(path: Path) -> bool:
    """Return True if a folder holds a ladder without a record: a baseline that was committed."""
    ladder, record = path / LADDER, path / RECORD
    return ladder.is_file() and not record.is_file() and not is_run_of_store(path)


def _open(path: Path, artifact_id: str) -> Artifact | None:
    """Return an artifact of a run; None if it is gone.

    Raises:
        DamagedArtifactError: its manifest is damaged.
    """
    if not path.is_dir():
        return None
    artifact = open_with_reports(path)
    if artifact.id != artifact_id:
        raise DamagedArtifactError(f"{path} is damaged: it holds the artifact {artifact.id[:12]}")
    return artifact


def require_trusted_models(models: Mapping[str, MeasuredModel], own_store: Path | None) -> None:
    """Check that measured artifacts were built in ``own_store``, or are signed.

    Raises:
        UsageError: there is no public key, or a model has no artifact that could be signed.
        DamagedArtifactError: an artifact is not signed with a trusted key.
    """
    for model in models.values():
        if model.artifact is None:
            raise UsageError(
                f"signatures are required, and of {model.name} only figures are left",
                remedy="compare with signed artifacts, or with a run whose artifacts still exist",
            )
        require_trust(model.artifact, own_store)


def find_counterpart(baseline: Mapping[str, MeasuredModel], step: str) -> MeasuredModel | None:
    """Return the model that a step is compared with.

    This is the baseline's step of the same name; or its only model, whatever the name.
    """
    return next(iter(baseline.values())) if len(baseline) == 1 else baseline.get(step)


def measured_models_of_ladder(path: Path) -> dict[str, MeasuredModel]:
    """Return step to metrics from a ladder.json or its folder; errors as ``measured_models_at``.

    The files of a run are checked against its record. A ladder without a record, such as one that
    was committed as a baseline, is used as it is.
    """
    file = path / LADDER if path.is_dir() else path
    rows = ladder_rows(file)
    samples = _read_samples(file.with_name(SAMPLES))
    return {
        row.step: MeasuredModel(row.step, row.id, row.metrics, None, samples.get(row.step), True)
        for row in rows
    }


def ladder_rows(file: Path) -> list[RecordedStep]:
    """Return the rows of a ladder.json; errors as ``measured_models_at``."""
    content = _read(file)
    if content is None:
        raise UsageError(
            f"{file} does not exist",
            remedy="name an artifact, a run, a store, or a run's ladder.json",
        )
    tree = parse_json(content, str(file), DamagedArtifactError, None)
    try:
        rows = [RecordedStep.model_validate(row) for row in tree["rows"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        first_line = str(error).splitlines()[0]
        raise DamagedArtifactError(f"{file} is not a ladder: {first_line}") from error
    if not rows:
        raise DamagedArtifactError(f"{file} has no rows")
    return rows


def unchecked_record(path: Path) -> str | None:
    """Return a sentence if a run's record has no digests, so that its figures are not checked."""
    if is_artifact(path) or (path.suffix == ".json" and path.name != RECORD):
        return None
    if _is_bare_ladder(path):
        return None
    folder, record = find_run(path)
    if record.has_digests:
        return None
    return (
        f"{folder / RECORD} was written before records had digests, so changes of its ladder and "
        "samples are not detected"
    )


def _read(file: Path) -> bytes | None:
    """Return the content of a ladder or its samples; those of a run are checked."""
    folder = file.parent
    is_recorded = (folder / RECORD).is_file() or is_run_of_store(folder)
    if is_recorded and file.name in (LADDER, SAMPLES):
        return read_run_file(folder, file.name)
    return read_unlisted(file)


def _read_samples(file: Path) -> dict[str, Samples]:
    content = _read(file)
    if content is None:
        return {}
    try:
        return TypeAdapter(dict[str, Samples]).validate_json(content)
    except (ValidationError, RecursionError) as error:
        raise DamagedArtifactError(f"{file} is damaged: {str(error).splitlines()[0]}") from error
