"""Records of JSON files: one object per line, an array of objects, or one object."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from calibration.sources.records.encoding import (
    SAMPLED_BYTES,
    decode,
    decode_start,
    encoding_of,
    is_compressed,
    is_utf8,
    lines_of,
    open_data,
    read_document,
)
from calibration.sources.records.json_text import (
    JSONError,
    array_items,
    parse_json,
    parse_value,
    skip_blanks,
)
from calibration.sources.records.record import DataRecord, ProblemList, json_type
from compressor.errors import DataError

_LISTS = ("data", "records", "rows", "examples", "instances")
"""Keys under which a file that is one object may hold its records."""
_LONGEST_SAMPLED_LINE = 1 << 23

Line = tuple[str, bytes]
"""Place of a line in its file, and its bytes."""


def read_json(file: Path, problems: ProblemList) -> Iterator[DataRecord]:
    """Yield the records of a JSON file of any layout, and add its problems.

    Raises:
        DataError: the file is not text.
    """
    with open_data(file) as stream:
        start = stream.read(SAMPLED_BYTES)
        stream.seek(0)
        if is_utf8(encoding_of(start)) and _starts_with_object_line(start):
            records = _line_records(file, _numbered(lines_of(stream, file)), problems)
            yield from _unwrapped(records)
            return
        text = decode(read_document(stream, file), str(file))
    yield from _document_records(file, text, problems)


def sample_json(file: Path, problems: ProblemList) -> Iterator[DataRecord]:
    """Yield the first and last records of a JSON file, all of a small one, and add its problems.

    Raises:
        DataError: the start of the file is not text.
    """
    with open_data(file) as stream:
        start = stream.read(SAMPLED_BYTES + 1)
        if len(start) <= SAMPLED_BYTES:
            yield from read_json(file, problems)
            return
        text = decode_start(start, str(file))
        position = skip_blanks(text, 0)
        if text[position : position + 1] == "[":
            yield from _items(file, text, position, problems, is_whole=False)
        elif is_utf8(encoding_of(start)) and _starts_with_object_line(start):
            stream.seek(0)
            lines = chain(_first_lines(stream), () if is_compressed(file) else _last_lines(stream))
            yield from _unwrapped(_line_records(file, lines, problems))
        else:
            yield from _first_records(file, text, problems)


def _first_records(file: Path, text: str, problems: ProblemList) -> Iterator[DataRecord]:
    """Yield the records of lines at the start of a file of which only the start was read.

    The file is not UTF-8, or its first line is no object: it is broken, or starts a longer one.
    """
    lines = text.split("\n")[:-1]
    if any(map(is_object, lines[:2])):
        encoded = (line.encode(errors="surrogatepass") for line in lines)
        yield from _line_records(file, _numbered(encoded), problems)
        return
    try:
        _, end = parse_value(text, skip_blanks(text, 0))
        if (end := skip_blanks(text, end)) < len(text):
            raise JSONError("text after the end of the JSON value", end, at_end=False)
    except JSONError as error:
        if not error.at_end:
            problems.add(_document_problem(file, text, error))


def _starts_with_object_line(start: bytes) -> bool:
    """Return True if the first line is an object, or exceeds the sampled bytes."""
    line, newline, _ = start.removeprefix(b"\xef\xbb\xbf").lstrip().partition(b"\n")
    if not line.startswith(b"{"):
        return False
    try:
        parse_json(line.decode(errors="replace"))
    except JSONError:
        return not newline and len(start) >= SAMPLED_BYTES
    return True


def _numbered(stream: Iterable[bytes]) -> Iterator[Line]:
    return ((f":{number}", line) for number, line in enumerate(stream, start=1))


def _first_lines(stream: IO[bytes]) -> Iterator[Line]:
    """Yield the first lines that are complete, at least one of them if it is not too long."""
    for number in range(1, SAMPLED_BYTES):
        line = stream.readline(_LONGEST_SAMPLED_LINE)
        if not line.endswith(b"\n"):
            return
        yield f":{number}", line
        if stream.tell() > SAMPLED_BYTES:
            return


def _last_lines(stream: IO[bytes]) -> Iterator[Line]:
    """Yield the last lines behind the position of a stream, counted from the end."""
    position, size = stream.tell(), stream.seek(0, 2)
    stream.seek(max(size - SAMPLED_BYTES, position) - 1)  # from the end of the line before
    lines = stream.read().removesuffix(b"\n").split(b"\n")[1:]
    for number, line in zip(range(len(lines), 0, -1), lines, strict=True):
        yield (" in the last line" if number == 1 else f" line {number} from the end"), line


def _line_records(file: Path, lines: Iterable[Line], problems: ProblemList) -> Iterator[DataRecord]:
    """Yield the records of lines that hold one object each; blank lines are none."""
    for place, content in lines:
        where = f"{file}{place}"
        try:
            line = decode(content, where, "utf-8-sig")
            if skip_blanks(line, 0) == len(line):
                continue
            value = parse_json(line.lstrip("\ufeff"))
        except DataError as error:
            problems.add(error.what)
        except JSONError as error:
            truncated = ", and the file may be truncated" if error.at_end else ""
            problems.add(
                f"{where}: no JSON record: {error} (column {error.position + 1}){truncated}"
            )
        else:
            if isinstance(value, dict):
                yield DataRecord(file, place, value)
            else:
                problems.add(f"{where}: no JSON record, but {json_type(value)}")


def _unwrapped(records: Iterator[DataRecord]) -> Iterator[DataRecord]:
    """Yield records; those in its list if there is only one record, which holds a list of them."""
    first = list(islice(records, 2))
    if len(first) == 1 and (name := _list_of_records(first[0].fields)):
        for index, fields in enumerate(first[0].fields[name], start=1):
            yield DataRecord(first[0].file, f" {name} record {index}", fields)
        return
    yield from chain(first, records)


def _list_of_records(value: dict[str, Any] | Any) -> str | None:
    """Return the key of an object's list of records; None if the object is a record itself."""
    lists = [name for name, item in value.items() if isinstance(item, list)]
    if len(lists) != 1 or lists[0] not in _LISTS:
        return None
    items = value[lists[0]]
    return lists[0] if items and all(isinstance(item, dict) for item in items) else None


def _document_records(file: Path, text: str, problems: ProblemList) -> Iterator[DataRecord]:
    """Yield the records of a file that does not start with an object on one line."""
    position = skip_blanks(text, 0)
    if text[position : position + 1] == "[":
        yield from _items(file, text, position, problems)
        return
    try:
        value = parse_json(text)
    except JSONError as error:
        lines = [line for line in text.split("\n") if line.strip()]
        if any(map(is_object, lines[:2])):
            encoded = (line.encode(errors="surrogatepass") for line in text.split("\n"))
            yield from _line_records(file, _numbered(encoded), problems)
        elif lines:
            problems.add(_document_problem(file, text, error))
        return
    if isinstance(value, dict):
        yield from _unwrapped(iter([DataRecord(file, ":1", value)]))
    else:
        problems.add(f"{file}:1: no JSON record, but {json_type(value)}")


def _document_problem(file: Path, text: str, error: JSONError) -> str:
    line = text.count("\n", 0, error.position) + 1
    truncated = ", and the file may be truncated" if error.at_end else ""
    return (
        f"{file}:{line}: no JSON record: {error}{truncated}; "
        "expected one object per line, or a list of objects"
    )


def is_object(line: str) -> bool:
    """Return True if a line is a JSON object."""
    try:
        return isinstance(parse_json(line), dict)
    except JSONError:
        return False


def _items(
    file: Path, text: str, position: int, problems: ProblemList, *, is_whole: bool = True
) -> Iterator[DataRecord]:
    """Yield the objects of an array, up to its first error.

    Args:
        file: the file, for messages.
        text: its text.
        position: place of the array's bracket.
        problems: problems are added here.
        is_whole: False if only the start of the file was read, and the array may be cut off.
    """
    line, counted = 1, 0
    try:
        for index, (start, value) in enumerate(array_items(text, position), start=1):
            line, counted = line + text.count("\n", counted, start), start
            place = f":{line} (record {index})"
            if isinstance(value, dict):
                yield DataRecord(file, place, value)
            else:
                problems.add(f"{file}{place}: no JSON record, but {json_type(value)}")
    except JSONError as error:
        if is_whole or not error.at_end:
            problems.add(_document_problem(file, text, error))
