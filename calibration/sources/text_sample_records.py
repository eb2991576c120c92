"""Records of the data source ``text-samples``: texts, words, labels and targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from calibration.sources.records.record import (
    DataRecord,
    ProblemList,
    RecordError,
    checked_text,
    json_type,
)

Label = int | float | str
"""Number or name of a class, or a score."""


@dataclass(frozen=True, slots=True)
class SampleFields:
    """Keys of a record; None for what records do not have."""

    text: str
    pair: str | None
    label: str | None
    target: str | None


@dataclass(frozen=True, slots=True)
class Sample:
    """One record."""

    where: str
    """File and place, for messages."""
    text: str | list[str]
    """A text, or its words."""
    pair: str | None
    label: Label | list[Label] | None
    """One label, or one for each word."""
    target: str | None


def read_sample(record: DataRecord, fields: SampleFields, problems: ProblemList) -> Sample | None:
    """Return the sample of a record; None after adding a problem."""
    try:
        text = _value(record, fields.text)
        words = text if isinstance(text, list) else None
        sample = Sample(
            record.where,
            _words(words, fields.text) if words is not None else checked_text(text, fields.text),
            None if fields.pair is None else checked_text(_value(record, fields.pair), fields.pair),
            None if fields.label is None else _label(_value(record, fields.label), fields.label),
            None
            if fields.target is None
            else checked_text(_value(record, fields.target), fields.target),
        )
        _check_words(sample, fields)
    except RecordError as error:
        problems.add(f"{record.where}: {error}")
        return None
    return sample


def _value(record: DataRecord, key: str) -> Any:
    if key not in record.fields:
        keys = ", ".join(map(repr, record.fields)) or "none"
        raise RecordError(f"no field {key!r}; the record has the fields {keys}")
    return record.fields[key]


def _words(value: list[Any], key: str) -> list[str]:
    return [checked_text(word, f"a word of {key!r}") for word in value]


def _label(value: Any, key: str) -> Label | list[Label]:
    if isinstance(value, list):
        return [_single_label(item, key) for item in value]
    return _single_label(value, key)


def _single_label(value: Any, key: str) -> Label:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise RecordError(f"{key!r} is {json_type(value)}, not the number or name of a class")
    if isinstance(value, str):  # columns of .csv hold text
        for convert in (int, float):
            try:
                return convert(value)
            except ValueError:
                continue
    return value


def _check_words(sample: Sample, fields: SampleFields) -> None:
    if not isinstance(sample.label, list):
        return
    if not isinstance(sample.text, list):
        raise RecordError(f"{fields.label!r} labels words, and {fields.text!r} is no list of words")
    if len(sample.label) != len(sample.text):
        raise RecordError(
            f"{fields.label!r} has {len(sample.label)} labels for {len(sample.text)} words"
        )
