"""Validate plain values into typed records, or list every problem with its line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, get_args

from pydantic import AliasChoices, BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from compressor.config.discovery import closest, suggestion
from compressor.config.document import Document, Location
from compressor.config.record import Record, Reference
from compressor.errors import Problem

R = TypeVar("R", bound=Record)
_NAMES = {
    "data": "the name of a set under `data:`",
    "step": "the name of a step",
    "path": "a path",
}
_UNKNOWN = "extra_forbidden"
"""Pydantic's type of errors for unknown keys."""


def validate(
    record: type[R], tree: Any, document: Document, at: Location = ()
) -> tuple[R | None, list[Problem]]:
    """Validate strictly, as JSON, so that ``"7"`` is not a number.

    Returns:
        The record and no problems; the record without its unknown keys, and those as problems; or
        None and every problem.
    """
    try:
        text = json.dumps(tree, allow_nan=False)
    except ValueError:
        return None, [document.problem(at, "holds .nan or .inf", expected="finite numbers")]
    try:
        return record.model_validate_json(text), []
    except ValidationError as error:
        problems = _problems(record, error, document, at, tree)
        unknown = [detail["loc"] for detail in error.errors() if detail["type"] == _UNKNOWN]
        if len(unknown) < error.error_count() or any(_synonym(record, at_) for at_ in unknown):
            return None, problems
        known = json.loads(text)
        for place in unknown:
            if not _remove(known, place):
                return None, problems
        return validate(record, known, document, at)[0], problems


def _remove(tree: Any, place: Location) -> bool:
    """Remove a key from a tree; return False if the place is not in it."""
    for part in place[:-1]:
        is_there = part in tree if isinstance(tree, dict) else isinstance(tree, list)
        if not is_there or (isinstance(tree, list) and not isinstance(part, int)):
            return False
        tree = tree[part]
    return isinstance(tree, dict) and tree.pop(place[-1], tree) is not tree


def _problems(
    record: type[Record], error: ValidationError, document: Document, at: Location, tree: Any
) -> list[Problem]:
    by_place: dict[Location, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        by_place.setdefault(_existing(detail, tree), []).append(detail)
    misspelt = {
        (*place[:-1], closest(str(place[-1]), sorted(_fields_at(record, place[:-1]))))
        for place, details in by_place.items()
        if details[0]["type"] == _UNKNOWN
    }
    return [
        _problem(record, place, details, document, at)
        for place, details in by_place.items()
        if details[0]["type"] != "missing" or place not in misspelt
    ]


def missing_key(key: str, entry: Mapping[str, Any], document: Document, at: Location) -> Problem:
    """Return the problem of a mapping without a key: the key is misspelt, or it is missing."""
    misspelt = closest(key, [str(name) for name in entry])
    if misspelt is None:
        return document.problem(at, f"has no `{key}`")
    return document.problem(
        (*at, misspelt), f"unknown key {misspelt!r}", remedy=f"did you mean {key!r}?"
    )


def _existing(detail: ErrorDetails, tree: Any) -> Location:
    """Return an error's location without the tags that pydantic adds for members of a union."""
    place: list[str | int] = []
    node = tree
    for index, part in enumerate(detail["loc"]):
        if isinstance(node, dict) and part in node:
            node = node[part]
        elif isinstance(node, list):
            if not isinstance(part, int) or part >= len(node):
                continue
            node = node[part]
        elif detail["type"] != "missing" or index < len(detail["loc"]) - 1:
            continue
        place.append(part)
    return tuple(place)


def _problem(
    record: type[Record],
    place: Location,
    details: list[ErrorDetails],
    document: Document,
    at: Location,
) -> Problem:
    first = details[0]
    where = (*at, *place)
    if first["type"] == _UNKNOWN:
        key = str(place[-1])
        if (synonym := _synonym(record, place)) is not None:
            what = f"{key!r} and {synonym!r} are two names of one key"
            return document.problem(where, what, remedy="keep one of them")
        known = sorted(_fields_at(record, place[:-1]) - {key})
        return document.problem(where, f"unknown key {key!r}", remedy=suggestion(key, known))
    if first["type"] == "missing":
        return document.problem(where, "is missing", expected=_description(record, place))
    if first["type"] == "value_error":
        return document.problem(where, str(first.get("ctx", {}).get("error", first["msg"])))
    expected = " or ".join(dict.fromkeys(_expected(detail) for detail in details))
    got = first["input"]
    remedy = None
    if (reference := _reference_at(record, place)) is not None and isinstance(got, dict):
        expected, names = _NAMES[reference.to], [v for v in got.values() if isinstance(v, str)]
        remedy = f"write `{place[-1]}: {names[0]}`" if len(names) == len(got) == 1 else None
    elif isinstance(got, str) and (choices := re.findall(r"'([^']*)'", expected)):
        match = closest(got, choices)
        remedy = f"did you mean {match!r}?" if match else None
    elif any(detail["type"] == "model_type" for detail in details):
        keys = ", ".join(sorted(_fields_at(record, place)))
        expected = f"a mapping with the keys {keys}"
    return document.problem(where, f"got {_show(got)}", expected=expected, remedy=remedy)


def _expected(detail: ErrorDetails) -> str:
    return re.sub(
        r"^(Input|Value|Tuple|List|String|Dictionary) should (be|have) ", "", detail["msg"]
    )


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    nouns = {
        str: "text",
        bool: "true/false",
        int: "a whole number",
        float: "a number",
        type(None): "nothing",
    }
    return (
        f"{json.dumps(value, ensure_ascii=False)} ({nouns.get(type(value), type(value).__name__)})"
    )


def _records_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _records_in(argument)


def _fields_at(record: type[BaseModel], place: Location) -> set[str]:
    """Return the keys that are allowed at ``place``."""
    records = _records_at(record, place)
    return {
        field.alias or name for nested in records for name, field in nested.model_fields.items()
    }


def _synonym(record: type[BaseModel], place: Location) -> str | None:
    """Return another name of the key at ``place`` if it is one of several names of a field."""
    for nested in _records_at(record, place[:-1]):
        for field in nested.model_fields.values():
            names = field.validation_alias
            if isinstance(names, AliasChoices) and place[-1] in names.choices:
                return next(str(name) for name in names.choices if name != place[-1])
    return None


def _records_at(record: type[BaseModel], place: Location) -> list[type[BaseModel]]:
    """Return the record types that may stand at ``place``; several for a union."""
    records: list[type[BaseModel]] = [record]
    for part in place:
        if isinstance(part, int):
            continue
        annotations = [
            outer.model_fields[part].annotation for outer in records if part in outer.model_fields
        ] or [field.annotation for outer in records for field in outer.model_fields.values()]
        records = [nested for annotation in annotations for nested in _records_in(annotation)]
    return records


def _reference_at(record: type[BaseModel], place: Location) -> Reference | None:
    """Return the marker of the field at ``place`` if it names something else in the pipeline."""
    for nested in _records_at(record, place[:-1]):
        field = nested.model_fields.get(str(place[-1])) if place else None
        if field is not None:
            return _reference_of(field)
    return None


def _description(record: type[BaseModel], place: Location) -> str | None:
    for nested in _records_at(record, place[:-1]):
        for name, field in nested.model_fields.items():
            if (field.alias or name) == place[-1] and field.description:
                return " ".join(field.description.split())
    return None


def references(record: BaseModel, at: Location = ()) -> Iterator[tuple[Location, Reference, str]]:
    """Yield every field of a record, nested ones included, that names something in the pipeline."""
    for name, field in type(record).model_fields.items():
        value = getattr(record, name)
        if isinstance(value, BaseModel):
            yield from references(value, (*at, name))
        elif isinstance(value, tuple):
            for index, item in enumerate(value):
                if isinstance(item, BaseModel):
                    yield from references(item, (*at, name, index))
        elif isinstance(value, str):
            reference = _reference_of(field)
            if reference is not None:
                yield (*at, name), reference, value


def _reference_of(field: FieldInfo) -> Reference | None:
    markers = (marker for marker in field.metadata if isinstance(marker, Reference))
    return next(markers, None) or _reference_in(field.annotation)


def _reference_in(annotation: Any) -> Reference | None:
    for argument in (*getattr(annotation, "__metadata__", ()), *get_args(annotation)):
        if isinstance(argument, Reference):
            return argument
        if (reference := _reference_in(argument)) is not None:
            return reference
    return None
