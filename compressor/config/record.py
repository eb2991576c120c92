"""The base of every record that is read from a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field


class Record(BaseModel):
    """A frozen record that refuses unknown keys and coerces nothing (``"7"`` is not a number).

    Numbers are finite: YAML writes NaN and infinity as ``.nan`` and ``.inf``.

    The docstring below a field is its documentation for users.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


@dataclass(frozen=True, slots=True)
class Reference:
    """Marks a string field as the name of something else in the pipeline, which must exist."""

    to: Literal["data", "step", "path"]
    made_by: str | None = None
    """The pass that must have made the named step."""


@dataclass(frozen=True, slots=True)
class LeftOutOfIds:
    """Marks a field that ids do not cover at its default: it was added when artifacts existed."""


MAX_BATCH_SIZE = 65536
"""Largest number of samples in one call of a model; their inputs are in memory at once."""

BatchSize = Annotated[int, Field(ge=1, le=MAX_BATCH_SIZE)]
"""Samples in one call of a model."""

DataName = Annotated[str, Reference("data")]
"""Name of a set under ``data:``."""

StepName = Annotated[str, Reference("step")]
"""Name of an earlier step, or ``source``."""


def with_former_names(record: BaseModel, tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON values of a record, each field under the first name that it ever had.

    Ids are computed from this form, so that renaming a field rebuilds no artifact. Fields that are
    ``LeftOutOfIds`` are left out at their default, so that adding them rebuilds none either.

    Args:
        record: the record.
        tree: its ``model_dump(mode="json")``; values may have been replaced.
    """
    renamed: dict[str, Any] = {}
    for name, field in type(record).model_fields.items():
        value, dumped = getattr(record, name), tree[name]
        if LeftOutOfIds() in field.metadata and value == field.default:
            continue
        if isinstance(value, BaseModel):
            dumped = with_former_names(value, dumped)
        elif isinstance(value, tuple):
            dumped = [
                with_former_names(item, entry) if isinstance(item, BaseModel) else entry
                for item, entry in zip(value, dumped, strict=True)
            ]
        names = field.validation_alias
        renamed[str(names.choices[-1]) if isinstance(names, AliasChoices) else name] = dumped
    return renamed
