"""The base of every record that is read from a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A frozen record that refuses unknown keys and coerces nothing (``"7"`` is not a number).

    The docstring below a field is its documentation for users.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )


@dataclass(frozen=True, slots=True)
class Reference:
    """Marks a string field as the name of something else in the pipeline, which must exist."""

    to: Literal["data", "step", "path"]
    made_by: str | None = None
    """The pass that must have made the named step."""


DataName = Annotated[str, Reference("data")]
"""Name of a set under ``data:``."""

StepName = Annotated[str, Reference("step")]
"""Name of an earlier step, or ``source``."""
