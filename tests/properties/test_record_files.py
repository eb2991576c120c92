"""Records are read back as they were written, in every layout, encoding and line end."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.sources.conversations.forms import parse_conversation
from calibration.sources.records.encoding import read_text
from calibration.sources.records.reading import read_records, sample_records
from calibration.sources.records.record import DataRecord, ProblemList, RecordError
from calibration.sources.text import Text, TextConfig
from compressor.data.contract import SourceContext
from compressor.errors import CompressError
from tests.support.record_files import (
    ENCODINGS,
    JSON_LAYOUTS,
    LINE_ENDS,
    write_json,
    write_table,
    write_text,
)

# U+0000 in a file means that it is binary; half of a surrogate pair has no encoding.
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
TEXTS = st.one_of(
    st.text(CHARACTERS, max_size=20),
    st.text("\u2028\u2029\u0085\x0b\x0c\x1c\r\n\t ,;\"'{}[]\\a\ufeff", max_size=12),
)
VALUES = st.recursive(
    st.one_of(TEXTS, st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False)).filter(
        lambda value: value not in (float("inf"), float("-inf"))
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
RECORDS = st.lists(st.dictionaries(TEXTS, VALUES, max_size=4), min_size=2, max_size=6)
ROWS = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.lists(TEXTS, min_size=width, max_size=width), min_size=1, max_size=5)
)


def read(file: Path) -> list[Any]:
    problems = ProblemList()
    records = [dict(record.fields) for record in read_records(file, problems)]
    sampled = [dict(record.fields) for record in sample_records(file, problems)]
    assert list(problems) == []
    assert sampled == records
    return records


@given(
    records=RECORDS,
    layout=st.sampled_from(JSON_LAYOUTS),
    encoding=st.sampled_from(ENCODINGS),
    line_end=st.sampled_from(LINE_ENDS),
    suffix=st.sampled_from([".jsonl", ".JSONL", ".ndjson", ".json", ".jsonl.gz", ".Json.GZ"]),
    flags=st.fixed_dictionaries(
        {name: st.booleans() for name in ("blank_lines", "final_line_end", "ascii_only")}
    ),
)
def test_records_of_json_are_read_back(
    records: list[dict[str, Any]],
    layout: str,
    encoding: str,
    line_end: str,
    suffix: str,
    flags: dict[str, bool],
) -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder) / f"records{suffix}"
        write_json(file, records, layout=layout, encoding=encoding, line_end=line_end, **flags)
        assert read(file) == records


@given(
    rows=ROWS,
    encoding=st.sampled_from(ENCODINGS),
    line_end=st.sampled_from(LINE_ENDS),
    suffix=st.sampled_from([".csv", ".CSV", ".tsv", ".csv.gz"]),
)
def test_rows_of_tables_are_read_back(
    rows: list[list[str]], encoding: str, line_end: str, suffix: str
) -> None:
    records = [{f"c{index}": cell for index, cell in enumerate(row)} for row in rows]
    with TemporaryDirectory() as folder:
        file = Path(folder) / f"rows{suffix}"
        assert read(write_table(file, records, encoding=encoding, line_end=line_end)) == records


@given(texts=st.lists(TEXTS, min_size=1, max_size=5))
def test_rows_of_parquet_are_read_back(texts: list[str]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    with TemporaryDirectory() as folder:
        file = Path(folder) / "rows.parquet"
        parquet.write_table(pyarrow.table({"text": texts}), file)
        assert read(file) == [{"text": text} for text in texts]


@given(text=st.text(CHARACTERS), encoding=st.sampled_from(ENCODINGS))
def test_a_text_never_changes(text: str, encoding: str) -> None:
    if encoding == "utf-8":
        text = text.lstrip("\ufeff")  # there, it is the byte order mark
    with TemporaryDirectory() as folder:
        assert read_text(write_text(Path(folder) / "a.txt", text, encoding)) == text


MARKS = (*'{}[],:" \n\\\ufeff\0é', "\r\n", "\\ud800", "<image>", "[[[[")
TOKENS = ("null", "NaN", "1e999", "-0", "9" * 5000, '"text"', '"messages"', '"data"', '"role"')
RECORD_TEXTS = ('{"text": "a"}', '{"messages": [{"role": "user", "content": "a"}]}')
FRAGMENTS = st.sampled_from([*MARKS, *TOKENS, *RECORD_TEXTS])
KEYS = [
    "messages",
    "conversations",
    "role",
    "content",
    "from",
    "value",
    "type",
    "text",
    "image",
    "images",
    "image_url",
    "url",
    "path",
    "base64",
    "source",
    "data",
    "system",
    "instruction",
    "input",
    "output",
    "history",
    "bytes",
    "tools",
    "id",
]
MESSAGE_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from(["user", "human", "text", "image", "a.png", "<image>", "data:,", "file://"])
    | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(
    pieces=st.lists(FRAGMENTS, max_size=12),
    suffix=st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet"]),
    encoding=st.sampled_from(ENCODINGS),
)
def test_a_damaged_file_is_refused_while_planning_or_read(
    pieces: list[str], suffix: str, encoding: str
) -> None:
    with TemporaryDirectory() as folder:
        file = write_text(Path(folder) / f"a{suffix}", "".join(pieces), encoding)
        config = TextConfig(source="text", path=file.name, sequence_length=1)
        problems = Text().problems(config, SourceContext(Path(folder)))
        try:
            Text().load(config, SourceContext(Path(folder)))
        except CompressError as error:
            assert problems or "holds a window" in str(error)
        else:
            assert not problems


@given(fields=st.dictionaries(st.just("messages"), MESSAGE_VALUES, min_size=1) | MESSAGE_VALUES)
def test_a_record_of_any_form_is_a_conversation_or_an_error(fields: Any) -> None:
    if not isinstance(fields, dict):
        return
    with TemporaryDirectory() as folder:
        record = DataRecord(Path(folder) / "a.jsonl", ":1", fields)
        try:
            conversation = parse_conversation(record)
        except RecordError:
            return
        assert all(message.parts is not None for message in conversation.messages)
