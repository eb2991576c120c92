"""Rows of tables as records: CSV, TSV and parquet files."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibration.sources.records.encoding import (
    SAMPLED_BYTES,
    decode,
    decode_start,
    is_compressed,
    open_data,
    read_document,
)
from calibration.sources.records.record import DataRecord, ProblemList
from compressor.errors import DataError, MissingExtraError
from compressor.foreign_files.libraries import library_errors

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

_SAMPLED_ROWS = 16
_COPY = "copy the file again"
_LARGEST_SAMPLED_GROUP = 1 << 26
"""Bytes of the largest last row group of which a sample reads the end."""


def read_csv(
    file: Path, delimiter: str, problems: ProblemList, *, sample: bool = False
) -> Iterator[DataRecord]:
    """Yield the rows of a CSV file as records of text, and add its problems.

    The first row names the columns. Blank lines are no rows. Columns without a name, such as the
    index that pandas writes, are left out.

    Args:
        file: the file.
        delimiter: character between cells.
        problems: problems are added here.
        sample: read only the start of a large file.

    Raises:
        DataError: the file is not text.
    """
    with open_data(file) as stream:
        content = stream.read(SAMPLED_BYTES) if sample else read_document(stream, file)
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
                named = zip(header, cells, strict=True)
                yield DataRecord(
                    file, f":{line}", {name: cell for name, cell in named if name.strip()}
                )
            else:
                problems.add(
                    f"{file}:{line}: {len(cells)} cells, but the first row names {len(header)} "
                    "columns"
                )
    except _CSVError as error:
        if is_whole or not error.at_end:
            problems.add(
                f"{file}:{error.line}: not CSV: {error}; a cell that starts with a double quote "
                "must end with one, and those within it are doubled"
            )


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
    if not any(name.strip() for name in header):
        return "no column has a name"
    return _repeated_names([name for name in header if name.strip()])


def _repeated_names(columns: list[str]) -> str | None:
    twice = sorted({name for name in columns if columns.count(name) > 1})
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
        DataError: the file is not parquet, is damaged, or has two columns of one name.
    """
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", f"reading {file}", "parquet") from error
    with open_data(file):  # names pointers of Git LFS and files without permission
        pass
    if is_compressed(file):
        raise DataError(
            f"{file} is compressed by gzip; parquet compresses its columns itself",
            remedy=f"run: gunzip {file}",
        )
    rows = _parquet_rows(file, parquet, sample=sample)
    while True:
        with library_errors(f"{file} is no readable parquet file", DataError, _COPY):
            record = next(rows, None)
        if record is None:
            return
        yield record  # outside of the block: errors of the reader of records are its own


def _parquet_rows(file: Path, parquet: Any, *, sample: bool) -> Iterator[DataRecord]:
    with parquet.ParquetFile(file, pre_buffer=False) as table:
        if wrong := _repeated_names(table.schema_arrow.names):
            raise DataError(f"{file}: {wrong}", remedy="rename one of them")
        for number, row in _numbered_rows(table, sample=sample):
            fields = {name: _without_nulls(value) for name, value in row.items()}
            yield DataRecord(file, f" row {number}", fields)


def _numbered_rows(table: ParquetFile, *, sample: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the fields of each row; of a sample, the first and last rows."""
    count = table.metadata.num_rows
    if not sample or count <= 2 * _SAMPLED_ROWS:
        batches = table.iter_batches(batch_size=1024)
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)
        return
    first = next(table.iter_batches(batch_size=_SAMPLED_ROWS))
    yield from enumerate(first.to_pylist(), start=1)
    group = table.metadata.num_row_groups - 1
    if table.metadata.row_group(group).total_byte_size <= _LARGEST_SAMPLED_GROUP:
        *_, last = table.iter_batches(batch_size=_SAMPLED_ROWS, row_groups=[group])
        start = count - last.num_rows + 1
        yield from enumerate(last.to_pylist(), start=start)


def _without_nulls(value: Any) -> Any:
    """Return a value without the null members of its structs: all have the same members."""
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
