"""Config fields without effect: errors while planning, by the names of the fields.

A field without effect beside the other fields is an error of its record (``raise_problems``). A
field that does not apply to a model is a ``FieldProblem``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from compressor.config.record import Record
from compressor.errors import RequirementError


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """A config field whose value has no effect on the model, or does not fit it."""

    field: str
    """Path of the field, such as ``decoder.target``."""
    reason: str
    remedy: str


def set_fields(config: Record, prefix: str = "") -> list[str]:
    """Return the paths of the fields that the user set, those of nested records included.

    A field that is set to null counts as left out.
    """
    paths = []
    for name in sorted(config.model_fields_set):
        value = getattr(config, name)
        if isinstance(value, Record):
            paths += set_fields(value, f"{prefix}{name}.")
        elif value is not None:
            paths.append(f"{prefix}{name}")
    return paths


def check_no_problems(problems: Iterable[FieldProblem]) -> None:
    """Check that there are no problems.

    Raises:
        RequirementError: there are; the message names every field.
    """
    problems = list(problems)
    if problems:
        raise RequirementError(
            "the config does not fit the model:\n"
            + "\n".join(f"    `{problem.field}`: {problem.reason}" for problem in problems),
            remedy="; ".join(dict.fromkeys(problem.remedy for problem in problems)),
        )


def is_set(record: Record, field: str) -> bool:
    """Return True if the user set a field to something else than null, false or an empty list."""
    value = getattr(record, field)
    return field in record.model_fields_set and value not in (None, ()) and value is not False


def raise_problems(problems: Sequence[str]) -> None:
    """Raise one ``ValueError`` with all problems of a record, for use in a pydantic validator."""
    if problems:
        raise ValueError("; ".join(problems))
