"""Files that hold the external data of an ONNX graph, read without onnx: planning needs them.

An ONNX file is a protobuf message: fields of a number, a wire type and a value. The messages on the
way to the names of external files are followed; everything else is skipped.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from compressor.errors import ModelError
from compressor.foreign_files.opening import open_file

_MOST_FIELDS = 3_000_000
"""Fields of the messages that are followed; the graph of a large decoder has some 10⁵."""
_MOST_DEPTH = 90
"""Levels of messages; protobuf itself reads 100."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIELDS = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
"""Message to the fields that lead to entries of external data, and their messages (onnx.proto)."""


def external_locations(file: Path) -> set[str]:
    """Return the names of the files beside an ONNX file that hold its external data.

    Names that lead out of the folder are left out: ``read_graph`` refuses the graph.

    Raises:
        ModelError: the file is not an ONNX file, is truncated, or expands to too much.
    """
    with _scanned(file) as scan:
        names = set(scan.locations())
    paths = (PurePosixPath(name) for name in names)
    return {str(path) for path in paths if not path.is_absolute() and ".." not in path.parts}


def check_structure(file: Path) -> None:
    """Check that a library can parse an ONNX file in bounded memory.

    An empty node takes two bytes in the file, and a hundred in memory.

    Raises:
        ModelError: as ``external_locations``.
    """
    with _scanned(file) as scan:
        for _ in scan.locations():
            pass


@contextmanager
def _scanned(file: Path) -> Iterator[_Scan]:
    """Map a file; what is wrong with its bytes is raised as an error that names it."""
    with open_file(file, ModelError) as handle:
        if not (size := os.fstat(handle.fileno()).st_size):
            yield _Scan(b"")
            return
        with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                yield _Scan(content, size)
            except (IndexError, ValueError) as error:
                raise ModelError(
                    f"{file} is not an ONNX model, or is truncated", remedy="copy or save it again"
                ) from error
            except _TooMuchError as error:
                raise ModelError(
                    f"{file} has {error}", remedy="it is damaged: copy or save it again"
                ) from error


class _TooMuchError(Exception):
    """More messages, or more levels of them, than any graph has."""


class _Scan:
    """Walks through the messages of a file, and counts them."""

    def __init__(self, content: mmap.mmap | bytes, size: int = 0) -> None:
        self._content, self._size, self._left = content, size, _MOST_FIELDS

    def locations(self) -> Iterator[str]:
        """Yield the names of external files."""
        return self._locations(0, self._size, "model", 0)

    def _locations(self, start: int, end: int, message: str, depth: int) -> Iterator[str]:
        if depth > _MOST_DEPTH:
            raise _TooMuchError(f"graphs nested more than {_MOST_DEPTH} messages deep")
        for number, low, high in self._fields(start, end):
            inner = _FIELDS[message].get(number)
            if inner == "entry":
                entry = {key: self._content[a:b] for key, a, b in self._fields(low, high)}
                if entry.get(1) == b"location" and entry.get(2):
                    yield entry[2].decode()
            elif inner is not None:
                yield from self._locations(low, high, inner, depth + 1)

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield number, start and end of the fields of a message that hold bytes."""
        position = start
        while position < end:
            self._left -= 1
            if self._left < 0:
                raise _TooMuchError(f"more than {_MOST_FIELDS} fields")
            tag, position = _varint(self._content, position)
            kind = tag & 7
            if kind == _VARINT:
                _, position = _varint(self._content, position)
            elif kind in {_FIXED64, _FIXED32}:
                position += 8 if kind == _FIXED64 else 4
            elif kind == _BYTES:
                length, position = _varint(self._content, position)
                yield tag >> 3, position, position + length
                position += length
            else:
                raise ValueError(f"wire type {kind}")
            if position > end:
                raise ValueError("a field ends behind its message")


def _varint(content: mmap.mmap | bytes, position: int) -> tuple[int, int]:
    """Return a number in the variable-length encoding, and the position behind it."""
    value = shift = 0
    while True:
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a number has more than 64 bits")
