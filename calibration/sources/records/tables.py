"""Rows of tables as records: CSV, TSV and parquet files."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from calibration.sources.records.encoding import SAMPLED_BYTES, decode, decode_start, open_data
from calibration.sources.records.record import DataRecord, ProblemList
from compressor.artifacts.errors_from_os import reading
from compressor.errors import DataError, MissingExtraError

_SAMPLED_ROWS = 16


def read_csv(
    file: Path, delimiter: str, problems: ProblemList, *, sample: bool = False
) -> Iterator[DataRecord]:
    """Yield the rows of a CSV file as records of text, and add its problems.

    The first row names the columns. Blank lines are no rows.

    Args:
        file: the file.
        delimiter: character between cells.
        problems: problems are added here.
        sample: read only the start of a large file.

    Raises:
        DataError: the file is not text.
    """
    with open_data(file) as stream:
        content = stream.read(SAMPLED_BYTES if sample else -1)
        is_whole = not stream.read(1)
    text = decode(content, str(file)) if is_whole else decode_start(content, str(file))
    rows = _rows(text, delimiter)
    try:
        header = next(rows, (1, []))[1]
        if wrong := _header_problem(header, delimiter):
            problems.add(f"{file}:1: {wrong}; the first row must name the columns")
            return
        for line, cells in rows if is_whole else _without_last(rows):
            if len(cells) == len(header):
                yield DataRecord(file, f":{line}", dict(zip(header, cells, strict=True)))
            else:
                problems.add(
                    f"{file}:{line}: {len(cells)} cells, but the first row names {len(header)} "
                    "columns"
                )
    except _CSVError as error:
        if is_whole or not error.at_end:
            problems.add(f"{file}:{error.line}: not CSV: {error}")


class _CSVError(Exception):
    def __init__(self, error: csv.Error, line: int) -> None:
        super().__init__(str(error))
        self.line, self.at_end = line, str(error) == "unexpected end of data"


def _rows(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not blank, each with the number of its first line."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    while True:
        try:
            with _cells_of_any_size():
                cells = next(reader, None)
        except csv.Error as error:
            raise _CSVError(error, line) from error
        if cells is None:
            return
        if cells:
            yield line, cells
        line = reader.line_num + 1


@contextmanager
def _cells_of_any_size() -> Iterator[None]:
    """Lift the limit of the csv module, which is one for the whole process."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _header_problem(header: list[str], delimiter: str) -> str | None:
    if not header:
        return "there is no row"
    others = [other for other in ",;\t|" if other != delimiter and other in header[0]]
    if len(header) == 1 and others:
        return f"the only column is {header[0]!r}: separate cells by {delimiter!r}"
    if not all(name.strip() for name in header):
        return "a column has no name"
    twice = sorted({name for name in header if header.count(name) > 1})
    return f"columns have the same name: {', '.join(twice)}" if twice else None


def _without_last(rows: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, list[str]]]:
    """Yield all rows but the last, which may be cut off."""
    previous = next(rows, None)
    for row in rows:
        if previous is not None:
            yield previous
        previous = row


def read_parquet(file: Path, *, sample: bool = False) -> Iterator[DataRecord]:
    """Yield the rows of a parquet file as records; absent members of structs are left out.

    Raises:
        MissingExtraError: pyarrow is not installed.
        DataError: the file is not parquet.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", f"reading {file}", "parquet") from error
    with open_data(file):  # names pointers of Git LFS and files without permission
        pass
    number = 0
    try:
        with reading(file), parquet.ParquetFile(file, pre_buffer=False) as table:
            for batch in table.iter_batches(batch_size=_SAMPLED_ROWS if sample else 1024):
                for row in batch.to_pylist():
                    number += 1
                    fields = {name: _without_nulls(value) for name, value in row.items()}
                    yield DataRecord(file, f" row {number}", fields)
                if sample:
                    return
    except pyarrow.ArrowException as error:
        raise DataError(
            f"{file} is no readable parquet file: {error}", remedy="copy the file again"
        ) from error


def _without_nulls(value: Any) -> Any:
    """Return a value without the null members of its structs: all have the same members."""
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
