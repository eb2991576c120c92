"""Records of files: layouts that are recognized by content, samples, and problems with places."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
import time
from pathlib import Path

import pytest

from calibration.sources.records import tables
from calibration.sources.records.encoding import read_text
from calibration.sources.records.reading import read_records, sample_records
from calibration.sources.records.record import ProblemList
from compressor.errors import DataError, MissingExtraError
from tests.support.record_files import write_json, write_text

RECORDS = [{"text": "a\u2028b"}, {"text": "c\u0085d"}]


def read(file: Path) -> tuple[list[dict[str, object]], list[str]]:
    problems = ProblemList()
    records = [dict(record.fields) for record in read_records(file, problems)]
    return records, list(problems)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".ndjson"])
@pytest.mark.parametrize("layout", ["lines", "array", "indented array", "wrapped"])
def test_the_content_decides_how_json_is_read(tmp_path: Path, suffix: str, layout: str) -> None:
    file = write_json(tmp_path / f"r{suffix}", RECORDS, layout=layout)
    assert read(file) == (RECORDS, [])


def test_one_object_is_one_record(tmp_path: Path) -> None:
    record = {"messages": [{"role": "user", "content": "x"}]}
    file = write_text(tmp_path / "r.json", json.dumps(record, indent=2))
    assert read(file) == ([record], [])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"a": 1}\n{"a": 1, "a": 2}\n', ":2: no JSON record: the key 'a' occurs twice"),
        ('{"a": 1}\n{"a": NaN}\n', ":2: no JSON record: NaN is not JSON"),
        ('{"a": 1}\n{"a": -Infinity}\n', ":2: no JSON record: -Infinity is not JSON"),
        ('{"a": 1}\n{"a": "b', ":2: no JSON record: .*the file may be truncated"),
        ('{"a": 1}\n7\n', ":2: no JSON record, but the number 7"),
        ('{"a": 1}\n{"b": 2} {"c": 3}\n', ":2: no JSON record: text after the end"),
        ('[{"a": 1},\n 7]', r":2 \(record 2\): no JSON record, but the number 7"),
        ('[{"a": 1},\n{"a": 2},\n{"a"', ":3: no JSON record: .*the file may be truncated"),
        ('[{"a": 1}\n{"a": 2}]', ":2: no JSON record: Expecting ',' or ']'"),
        ('[{"a": 1}]\n[2]', ":2: no JSON record: text after the end of the array"),
        ('{\n "a": 1,\n "b": \n}', ":4: no JSON record: Expecting value"),
    ],
)
def test_invalid_json_is_named_with_its_line(tmp_path: Path, content: str, problem: str) -> None:
    file = write_text(tmp_path / "r.jsonl", content)
    _, problems = read(file)
    assert len(problems) == 1
    with pytest.raises(AssertionError, match=problem):
        raise AssertionError(problems[0])


def test_all_invalid_lines_are_reported_up_to_a_limit(tmp_path: Path) -> None:
    file = write_text(tmp_path / "r.jsonl", '{"a": 1}\n' + "nonsense\n" * 30)
    records, problems = read(file)
    assert records == [{"a": 1}]
    assert len(problems) == 11
    assert problems[9].startswith(f"{file}:11:")
    assert problems[10] == "… and 20 more"


def test_a_line_in_another_encoding_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    file.write_bytes('{"a": 1}\n{"a": "ü"}\n{"a": 3}\n'.encode("latin-1"))
    records, problems = read(file)
    assert records == [{"a": 1}, {"a": 3}]
    assert problems == [f"{file}:2 is not UTF-8: byte 7"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"caf\xe9", "is not UTF-8: byte 3"),
        ("text".encode("utf-16-le"), r"holds the character U\+0000: it is binary, or UTF-16"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a Git LFS pointer"),
        (gzip.compress(b"text" * 1000, mtime=0)[:-9], "is a damaged gzip file"),
        (bz2.compress(b"text" * 1000), "is compressed by bzip2, not text\n.*bunzip2"),
        (lzma.compress(b"text" * 1000), "is compressed by xz, not text\n.*unxz"),
        (b"PK\x03\x04\0\0", "is a zip archive, as .xlsx"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_text(file)


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.txt does not exist"):
        read_text(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", ":1: there is no row"),
        ("a;b\n1;2\n", ":1: the only column is 'a;b': separate cells by ','"),
        (",\n1,2\n", ":1: no column has a name"),
        ("a,b,a\n1,2,3\n", ":1: columns have the same name: a"),
        ('a,b\n1,"2\n3"\n1\n', ":4: 1 cells, but the first row names 2 columns"),
        ('a,b\n1,"2', ":2: not CSV: unexpected end of data"),
        ('a,b\n1,"2"x\n', ":2: not CSV: .* those within it are doubled"),
    ],
)
def test_invalid_tables_are_named_with_their_line(
    tmp_path: Path, content: str, problem: str
) -> None:
    _, problems = read(write_text(tmp_path / "r.csv", content))
    assert len(problems) == 1
    assert re.search(f"r.csv{problem}", problems[0])


def test_columns_without_a_name_are_left_out(tmp_path: Path) -> None:
    file = write_text(tmp_path / "r.csv", ",text,\n0,a,\n1,b,\n")
    assert read(file) == ([{"text": "a"}, {"text": "b"}], [])


def test_cells_of_tables_have_any_size_and_line_breaks(tmp_path: Path) -> None:
    cell = "line\r\n" * 100_000
    file = write_text(tmp_path / "r.csv", f'text,n\n"{cell}",1\n')
    assert read(file) == ([{"text": cell, "n": "1"}], [])


def test_absent_members_of_parquet_structs_are_left_out(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parts = [{"type": "image", "path": "a.png"}, {"type": "text", "text": "x"}]
    table = pyarrow.Table.from_pylist([{"parts": parts, "score": None}])
    parquet.write_table(table, tmp_path / "r.parquet")
    assert read(tmp_path / "r.parquet") == ([{"parts": parts, "score": None}], [])


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "r.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match=r"r\.parquet is no readable parquet file"):
        read(tmp_path / "r.parquet")


def test_parquet_that_cannot_be_records_is_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    twice = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], ["text"] * 2)
    parquet.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(DataError, match=r"twice\.parquet: columns have the same name: text"):
        read(tmp_path / "twice.parquet")
    beyond = pyarrow.table({"time": pyarrow.array([2**62], pyarrow.timestamp("us"))})
    parquet.write_table(beyond, tmp_path / "date.parquet")
    with pytest.raises(DataError, match=r"date\.parquet is no readable parquet file: date value"):
        read(tmp_path / "date.parquet")
    zipped = tmp_path / "date.parquet.gz"
    zipped.write_bytes(gzip.compress((tmp_path / "date.parquet").read_bytes()))
    with pytest.raises(DataError, match=r"is compressed by gzip.*\n.*gunzip .*date\.parquet\.gz"):
        read(zipped)


def test_a_sample_of_parquet_has_its_first_and_last_rows(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"number": list(range(1000))})
    parquet.write_table(table, tmp_path / "r.parquet", row_group_size=300)
    records = list(sample_records(tmp_path / "r.parquet", ProblemList()))
    numbers = [record.fields["number"] for record in records]
    assert (numbers[0], numbers[-1]) == (0, 999)
    assert len(numbers) < 100
    assert [int(record.place.removeprefix(" row ")) - 1 for record in records] == numbers


def test_parquet_without_its_extra_names_the_install_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tables.sys.modules, "pyarrow", None)
    (tmp_path / "r.parquet").write_bytes(b"")
    with pytest.raises(MissingExtraError, match=r"pip install 'autoglm-compress\[parquet\]'"):
        read(tmp_path / "r.parquet")


def test_a_sample_of_a_large_file_has_its_first_and_last_records(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    lines = [f'{{"number": {number}, "text": "{"x" * 200}"}}\n' for number in range(20_000)]
    file.write_text("".join([*lines, '{"cut": "of']))
    problems = ProblemList()
    numbers = [record.fields["number"] for record in sample_records(file, problems)]
    assert numbers[:3] == [0, 1, 2]
    assert numbers[-1] == 19_999
    assert len(numbers) < 2_000
    assert len(set(numbers)) == len(numbers)
    (problem,) = problems
    assert "in the last line: no JSON record" in problem


@pytest.mark.parametrize("name", ["r.json", "r.csv", "r.jsonl.gz"])
def test_a_sample_of_a_large_file_has_its_first_records(tmp_path: Path, name: str) -> None:
    texts = [f"{number} " + "x" * 200 for number in range(5_000)]
    if name == "r.csv":
        file = write_text(tmp_path / name, "text\n" + "\n".join(texts))
    else:
        layout = "indented array" if name == "r.json" else "lines"
        records = [{"text": text} for text in texts]
        file = write_json(tmp_path / name, records, layout=layout)
    problems = ProblemList()
    sampled = [record.fields["text"] for record in sample_records(file, problems)]
    assert list(problems) == []
    assert 100 < len(sampled) < 2_000
    assert sampled == texts[: len(sampled)]


@pytest.mark.parametrize(
    ("start", "problem"),
    [
        ('{"text": "a"', ":1: no JSON record: Expecting ',' delimiter"),
        ("# header", ":1: no JSON record: Expecting value"),
        ('"a"\n"b"', ":2: no JSON record: text after the end of the JSON value"),
        ('{\n"text": "a"\n}\n{\n"text": "b"\n}', ":4: no JSON record: text after the end"),
    ],
)
def test_a_sample_of_a_large_file_shows_a_first_line_that_is_no_record(
    tmp_path: Path, start: str, problem: str
) -> None:
    records = "".join(f'{{"text": "{"x" * 200}"}}\n' for _ in range(2_000))
    file = write_text(tmp_path / "r.jsonl", f"{start}\n{records}")
    problems = ProblemList()
    list(sample_records(file, problems))
    assert len(list(problems)) == 1
    assert f"r.jsonl{problem}" in next(iter(problems))


def test_a_sample_of_a_large_file_in_utf16_has_its_first_records(tmp_path: Path) -> None:
    records = [{"number": number, "text": "x" * 200} for number in range(2_000)]
    file = write_json(tmp_path / "r.jsonl", records, encoding="utf-16")
    problems = ProblemList()
    numbers = [record.fields["number"] for record in sample_records(file, problems)]
    assert list(problems) == []
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > 100


def test_a_sample_takes_as_long_for_a_file_of_a_gigabyte(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    line = b'{"text": "%s"}\n' % (b"x" * 1000)
    with file.open("wb") as stream:  # sparse: the middle has no blocks on the disk
        stream.write(line * 1000)
        stream.seek(1 << 30)
        stream.write(b"\n" + line * 1000)
    started = time.perf_counter()
    problems = ProblemList()
    assert list(sample_records(file, problems))
    assert time.perf_counter() - started < 0.3
    assert list(problems) == []
