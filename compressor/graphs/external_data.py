"""Files that hold the external data of an ONNX graph, read without onnx: planning needs them.

An ONNX file is a protobuf message: fields of a number, a wire type and a value. The messages on the
way to the names of external files are followed; everything else is skipped.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from compressor.artifacts.errors_from_os import reading
from compressor.errors import ModelError

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
        ModelError: the file is not an ONNX file, or is truncated.
    """
    with reading(file), file.open("rb") as handle:
        if not file.stat().st_size:
            return set()
        with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                names = set(_locations(content, 0, len(content), "model"))
            except (IndexError, ValueError) as error:
                raise ModelError(
                    f"{file} is not an ONNX model, or is truncated", remedy="copy or save it again"
                ) from error
    paths = (PurePosixPath(name) for name in names)
    return {str(path) for path in paths if not path.is_absolute() and ".." not in path.parts}


def _locations(content: mmap.mmap, start: int, end: int, message: str) -> Iterator[str]:
    for number, low, high in _fields(content, start, end):
        inner = _FIELDS[message].get(number)
        if inner == "entry":
            entry = {key: content[a:b] for key, a, b in _fields(content, low, high)}
            if entry.get(1) == b"location" and entry.get(2):
                yield entry[2].decode()
        elif inner is not None:
            yield from _locations(content, low, high, inner)


def _fields(content: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and end of the fields of a message that hold bytes."""
    position = start
    while position < end:
        tag, position = _varint(content, position)
        kind = tag & 7
        if kind == _VARINT:
            _, position = _varint(content, position)
        elif kind in {_FIXED64, _FIXED32}:
            position += 8 if kind == _FIXED64 else 4
        elif kind == _BYTES:
            length, position = _varint(content, position)
            yield tag >> 3, position, position + length
            position += length
        else:
            raise ValueError(f"wire type {kind}")
        if position > end:
            raise ValueError("a field ends behind its message")


def _varint(content: mmap.mmap, position: int) -> tuple[int, int]:
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
