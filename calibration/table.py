"""Calibration table: activation ranges of a model, as JSON beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from compressor.artifacts.errors_from_os import writing
from compressor.config.record import Record
from compressor.errors import RequirementError
from compressor.foreign_files.json_files import read_json_record

TABLE = "calibration.json"


class Range(Record):
    """Range of one tensor over all calibration samples."""

    values: Annotated[int, Field(ge=0)]
    """Number of values observed."""
    minimum: float
    """Smallest value."""
    maximum: float
    """Largest value."""
    bound: Annotated[float, Field(ge=0)]
    """Clipping bound for a grid that is symmetric about 0."""
    bound_from_zero: Annotated[float, Field(ge=0)] | None = None
    """Clipping bound for a grid that starts at 0 and has twice as many steps; None if there are
    negative values."""


class CalibrationTable(Record):
    """Activation ranges of a model on calibration samples."""

    version: Annotated[int, Field(ge=1, le=1)] = 1
    """Version of the file format."""
    model: str
    """Id of the artifact whose activations were observed."""
    observer: str
    """Kind of observer that chose the bounds."""
    bits: int
    """Bits of the grids that the bounds were chosen for."""
    smoothing: float | None = None
    """Limit, in standard deviations, above which input channels were scaled down before they were
    observed; None if inputs were observed unscaled."""
    num_samples: int
    """Number of calibration samples."""
    samples_sha256: str
    """Digest of all inputs, in order (``Samples.digest``)."""
    tensors: dict[str, Range]
    """Range of each tensor ``<layer>:input`` and ``<layer>:output``."""

    def write(self, folder: Path) -> None:
        """Write ``calibration.json`` into a folder.

        Raises:
            StorageError: the disk is full, or the folder cannot be written.
        """
        with writing(folder):
            (folder / TABLE).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_table(folder: Path, model: str, bits: int) -> CalibrationTable:
    """Read the calibration table of a model folder.

    Args:
        folder: the folder that holds ``calibration.json``.
        model: id of the artifact that the ranges must belong to.
        bits: bits of the grids that the ranges must be for.

    Raises:
        RequirementError: the table is missing, damaged, of another model, of other bits, or of
            smoothed inputs.
    """
    file = folder / TABLE
    if not file.is_file():
        raise RequirementError(
            f"{folder} holds no {TABLE}", remedy="name an artifact of the pass qat"
        )
    table = _parse(file)
    if table.model != model:
        raise RequirementError(
            f"{file} belongs to another model: its ranges are those of {table.model}, "
            f"and this model is {model}",
            remedy="calibrate on samples, or name an artifact that was calibrated on this model",
        )
    if table.smoothing is not None:
        raise RequirementError(
            f"{file} holds ranges of smoothed inputs, which are valid only with the smoothing "
            "factors of their own step",
            remedy="calibrate on samples, or name the artifact of a step without `smoothing`",
        )
    if table.bits != bits:
        raise RequirementError(
            f"{file} is for grids of {table.bits} bits, but this step uses {bits} bits",
            remedy="calibrate on samples",
        )
    return table


def _parse(file: Path) -> CalibrationTable:
    return read_json_record(file, CalibrationTable, RequirementError, remedy="calibrate on samples")
