"""Files of records in every layout, encoding and line end that people have."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Records = Sequence[dict[str, Any]]
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le-with-mark", "utf-32")
LINE_ENDS = ("\n", "\r\n")
JSON_LAYOUTS = ("lines", "array", "indented array", "wrapped")


def write_json(
    file: Path,
    records: Records,
    *,
    layout: str = "lines",
    encoding: str = "utf-8",
    line_end: str = "\n",
    blank_lines: bool = False,
    final_line_end: bool = True,
    ascii_only: bool = False,
) -> Path:
    """Write records as JSON; a name that ends in ``.gz`` is compressed."""
    if layout == "lines":
        lines = [json.dumps(record, ensure_ascii=ascii_only) for record in records]
        if blank_lines:
            lines = [part for line in lines for part in ("", line, "  ")]
        text = line_end.join(lines) + (line_end if final_line_end else "")
    else:
        value: Any = {"version": 1, "data": records} if layout == "wrapped" else list(records)
        indent = None if layout == "array" else 1
        text = json.dumps(value, ensure_ascii=ascii_only, indent=indent).replace("\n", line_end)
    return write_text(file, text, encoding)


def write_text(file: Path, text: str, encoding: str = "utf-8") -> Path:
    """Write a text without changing its line ends."""
    if encoding == "utf-16-le-with-mark":
        content = b"\xff\xfe" + text.encode("utf-16-le")
    else:
        content = text.encode(encoding)
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)
    return file


def write_table(
    file: Path, records: Records, *, encoding: str = "utf-8", line_end: str = "\n"
) -> Path:
    """Write records with the same keys as CSV, or as TSV if the name has ``.tsv``."""
    buffer = io.StringIO(newline="")
    delimiter = "\t" if ".tsv" in file.name else ","
    writer = csv.DictWriter(
        buffer,
        list(records[0]),
        delimiter=delimiter,
        lineterminator=line_end,
        quoting=csv.QUOTE_ALL,  # the writer of Python 3.11 quotes no carriage return by itself
    )
    writer.writeheader()
    writer.writerows(records)
    return write_text(file, buffer.getvalue(), encoding)
