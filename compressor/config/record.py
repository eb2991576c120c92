"""The base of every record that is read from a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Frozen; unknown keys refused; no coercion (``"7"`` is no number); every field documented where it is declared."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )


@dataclass(frozen=True, slots=True)
class Reference:
    """Marks a string field that names something else in the pipeline; the plan checks that it exists."""

    to: Literal["data", "step", "path"]
    made_by: str | None = None
    """The pass that the named step has to be of."""


DataName = Annotated[str, Reference("data")]
"""The name of a set under ``data:``."""

StepName = Annotated[str, Reference("step")]
"""The name of an earlier step, or ``source``."""
