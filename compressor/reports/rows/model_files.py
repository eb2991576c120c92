"""Read what reports show from the files of an artifact, beside its manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compressor.artifacts.artifact import Artifact
from compressor.artifacts.records import read_report
from compressor.errors import DamagedArtifactError, ModelError, UsageError
from compressor.evaluation.records import LatencyReport
from compressor.foreign_files.json_files import read_json_object
from compressor.foreign_files.limits import RECORD
from compressor.reports.rows.artifact import Pairs

LATENCY_FILE = "reports/latency.json"
GENERATION_FILE = "reports/generation.json"
CALIBRATION_FILE = "calibration.json"
MOST_RANGES = 60
"""Number of tensors that one chart of calibration ranges can show."""


def read_latency(artifact: Artifact) -> LatencyReport | None:
    """Read ``reports/latency.json`` of an artifact; None if latency was not measured.

    Raises:
        DamagedArtifactError: The file is damaged.
    """
    return read_report(artifact, LATENCY_FILE, LatencyReport)


@dataclass(frozen=True, slots=True)
class Range:
    """Observed values of one calibrated tensor, and the range of its quantized values."""

    tensor: str
    values: int
    """Number of observed values."""
    minimum: float
    maximum: float
    bound: float
    """Largest magnitude that the quantized tensor can represent; values beyond it are clipped."""

    @property
    def magnitude(self) -> float:
        """Largest observed magnitude."""
        return max(abs(self.minimum), abs(self.maximum))


def read_calibration(model: Path) -> list[Range]:
    """Read ``calibration.json`` of a model folder; an empty list if there is none.

    Raises:
        DamagedArtifactError: The file is not a calibration table.
    """
    file = model / CALIBRATION_FILE
    if not file.is_file():
        return []
    tree = read_json_object(file, DamagedArtifactError, remedy=None, kind=RECORD)
    try:
        return [
            Range(
                tensor=name,
                values=int(entry["values"]),
                minimum=float(entry["minimum"]),
                maximum=float(entry["maximum"]),
                bound=float(entry["bound"]),
            )
            for name, entry in tree["tensors"].items()
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedArtifactError(f"{file} is not a calibration table: {error}") from error


def most_clipped(ranges: Sequence[Range], limit: int = MOST_RANGES) -> list[Range]:
    """Return the ``limit`` ranges that are clipped most, in their original order."""
    by_clipping = sorted(ranges, key=lambda range_: range_.bound / (range_.magnitude or 1.0))
    clipped = {range_.tensor for range_ in by_clipping[:limit]}
    return [range_ for range_ in ranges if range_.tensor in clipped]


def describe_model(artifact: Artifact) -> Pairs:
    """Return the facts that the artifact's format reads from the model's files.

    If the format is not installed or cannot read the model, the only row gives the reason.

    Raises:
        DamagedArtifactError: A file of the model is damaged.
    """
    from compressor.runtimes.formats import StoredModel  # loads numpy

    try:
        model = StoredModel.of(artifact)
        return model.format.describe(model.path)
    except (UsageError, ModelError) as error:
        return [("cannot be read", error.what)]
