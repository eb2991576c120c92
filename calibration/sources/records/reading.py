"""Read the records of a file, whatever its layout."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from calibration.sources.records.encoding import (
    SAMPLED_BYTES,
    UTF8,
    decode,
    decode_start,
    encoding_of,
    is_compressed,
    open_data,
)
from calibration.sources.records.json_files import is_object, read_json, sample_json
from calibration.sources.records.record import DataRecord, ProblemList
from calibration.sources.records.tables import read_csv, read_parquet

_LAYOUTS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".jsonlines": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
TEXT = "text"
"""Layout of a file that is one text."""
RECORD_SUFFIXES = ", ".join(_LAYOUTS)
"""Suffixes of files that hold records, for messages."""
_SAMPLED_FILES = 32


def layout_of(file: Path) -> str:
    """Return the layout that a file's suffix names; ``.gz`` behind it is ignored."""
    name = file.name.lower().removesuffix(".gz")
    return _LAYOUTS.get(Path(name).suffix, TEXT)


def holds_records(file: Path) -> bool:
    """Return True if a file holds records; others are one text."""
    return layout_of(file) != TEXT


def read_records(file: Path, problems: ProblemList) -> Iterator[DataRecord]:
    """Yield the records of a file, and add the problems of those that cannot be read.

    Raises:
        DataError: the file as a whole cannot be read.
        MissingExtraError: its layout needs a library that is not installed.
    """
    return _records(file, problems, sample=False)


def sample_records(file: Path, problems: ProblemList) -> Iterator[DataRecord]:
    """Yield the first and, where this is cheap, the last records; as ``read_records``."""
    return _records(file, problems, sample=True)


def _records(file: Path, problems: ProblemList, *, sample: bool) -> Iterator[DataRecord]:
    layout = layout_of(file)
    if layout == "parquet":
        return read_parquet(file, sample=sample)
    if layout in {"csv", "tsv"}:
        return read_csv(file, "," if layout == "csv" else "\t", problems, sample=sample)
    return sample_json(file, problems) if sample else read_json(file, problems)


def is_sampled_whole(file: Path) -> bool:
    """Return True if a sample of a file has all of its records."""
    if not is_compressed(file):
        return file.stat().st_size <= SAMPLED_BYTES
    with open_data(file) as stream:
        return len(stream.read(SAMPLED_BYTES + 1)) <= SAMPLED_BYTES


def starts_with_record(file: Path) -> bool:
    """Return True if the first line of a file of text is a JSON object.

    Raises:
        DataError: the start of the file is not text.
    """
    with open_data(file) as stream:
        start = stream.read(SAMPLED_BYTES)
        is_whole = not stream.read(1)
    text = decode(start, str(file)) if is_whole else decode_start(start, str(file))
    return is_object(text.lstrip().partition("\n")[0])


def sampled_files(files: Sequence[Path]) -> Iterable[Path]:
    """Return the first and last of many files, for checks that must be fast."""
    if len(files) <= _SAMPLED_FILES:
        return files
    return [*files[: _SAMPLED_FILES // 2], *files[-_SAMPLED_FILES // 2 :]]


def layouts_digested(files: Iterable[Path]) -> dict[str, Any]:
    """Return what a digest must cover beside the files' bytes.

    Text and JSON Lines in UTF-8 add nothing, as before other layouts and encodings were read.
    """
    layouts = []
    for file in files:
        with open_data(file) as stream:
            encoding = encoding_of(stream.read(4))
        layouts.append((layout_of(file), encoding))
    plain = {(TEXT, UTF8), ("jsonl", UTF8)}
    return {} if set(layouts) <= plain else {"layouts": [" ".join(layout) for layout in layouts]}
