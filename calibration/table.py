"""What calibration found, as JSON beside the model: readable, usable again, and bound to the model that it was found on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from compressor.artifacts.errors_from_os import reading, writing
from compressor.config.record import Record
from compressor.errors import RequirementError

TABLE = "calibration.json"


class Range(Record):
    """What one tensor held."""

    values: Annotated[int, Field(ge=0)]
    """How many were seen."""
    minimum: float
    maximum: float
    bound: Annotated[float, Field(ge=0)]
    """Where the observer clips magnitudes, for a symmetric grid."""
    bound_from_zero: Annotated[float, Field(ge=0)] | None = None
    """The same for a grid from 0 up, which has twice as many steps there; none where values are negative."""


class CalibrationTable(Record):
    """The ranges of a model's activations on some samples."""

    version: Annotated[int, Field(ge=1, le=1)] = 1
    """Of this file."""
    model: str
    """The id of the artifact that was run."""
    observer: str
    """What chose the bounds."""
    bits: int
    """Of the grids that they were chosen for."""
    smoothing: float | None = None
    """Beyond how many deviations channels were scaled down before; none where inputs were seen as they are."""
    num_samples: int
    samples_sha256: str
    """Of every input that was seen, in order."""
    tensors: dict[str, Range]
    """``<layer>:input`` and ``<layer>:output`` to what was seen there."""

    def write(self, folder: Path) -> None:
        """Write ``calibration.json``."""
        with writing(folder):
            (folder / TABLE).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_table(folder: Path, model: str, bits: int) -> CalibrationTable:
    """The table in a model's folder.

    Args:
        folder: where ``calibration.json`` lies.
        model: the id of the artifact that it must belong to.
        bits: of the grids that it must be for.

    Raises:
        RequirementError: there is none, it is damaged, or it was found on another model.
    """
    file = folder / TABLE
    if not file.is_file():
        raise RequirementError(
            f"{folder} holds no {TABLE}", remedy="name an artifact of the pass qat"
        )
    with reading(file):
        text = file.read_bytes()
    try:
        table = CalibrationTable.model_validate_json(text)
    except ValidationError as error:
        lines = [
            f"    {'.'.join(map(str, one['loc']))}: {one['msg']}"
            for one in error.errors(include_url=False)
        ]
        raise RequirementError(
            f"{file} is damaged:\n" + "\n".join(lines), remedy="calibrate on samples"
        ) from error
    if table.model != model:
        raise RequirementError(
            f"{file} belongs to another model: it was found on {table.model}, and this is {model}",
            remedy="calibrate on samples, or name the artifact whose table was found on this model",
        )
    if table.smoothing is not None:
        raise RequirementError(
            f"{file} holds ranges of inputs that were smoothed, and belongs to those factors",
            remedy="calibrate on samples, or name the artifact of a step without `smoothing`",
        )
    if table.bits != bits:
        raise RequirementError(
            f"{file} is for grids of {table.bits} bits, and these have {bits}",
            remedy="calibrate on samples",
        )
    return table
