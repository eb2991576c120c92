"""Safetensors files read without torch: headers, and values in chunks.

The format (https://huggingface.co/docs/safetensors): eight bytes with the length of the header, a
JSON header, then the raw tensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from compressor.errors import ModelError
from compressor.foreign_files.json_files import check_value_count
from compressor.foreign_files.libraries import library_errors, reason_of
from compressor.foreign_files.opening import (
    LFS_POINTER,
    check_file,
    open_file,
    refuse_lfs_pointer,
)

_MAX_HEADER_BYTES = 100_000_000
_MAX_HEADER_VALUES = 2_000_000
"""Values in a header, eight or so for each tensor; the largest checkpoints have 10⁴ in a file."""
_SIZE_LIMIT = 1 << 63
_CHUNK_VALUES = 1 << 22
_REMEDY = "copy or save it again"
_DTYPE_BITS: Mapping[str, int] = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
"""Every dtype of the format, and the bits of a value."""
TORCH_DTYPES: Mapping[str, str] = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
"""Name of a dtype in safetensors to its name in torch."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Location of one tensor in a safetensors file."""

    name: str
    dtype: str
    """The format's name of the dtype: F32, BF16, I64, …"""
    shape: tuple[int, ...]
    start: int
    """Offset of the first byte in the file."""
    end: int
    """Offset after the last byte."""


def read_header(file: Path) -> tuple[TensorEntry, ...]:
    """Return the tensors of a safetensors file, sorted by name, without reading their bytes.

    What the safetensors library refuses is refused: tensors that overlap, leave gaps, or do not
    have the bytes that their dtype and shape need, dtypes that are not known, and fields of other
    types. A name that occurs twice is refused too.

    Raises:
        ModelError: the file is no regular file, truncated, damaged, or not a safetensors file.
        StorageError: the machine cannot read it.
    """
    size = check_file(file, ModelError)
    with open_file(file, ModelError) as handle:
        start = handle.read(8)
        length = int.from_bytes(start, "little")
        refuse_lfs_pointer(start + handle.read(len(LFS_POINTER) - 8), str(file), ModelError)
        handle.seek(8)
        if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise ModelError(f"{file}: truncated, or not a safetensors file", remedy=_REMEDY)
        header = handle.read(length)
    try:
        entries = _parse_header(header)
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"{file}: its header is damaged ({reason_of(error)})", remedy=_REMEDY
        ) from error
    end = max((entry.end for entry in entries), default=8 + length)
    if end != size:
        raise ModelError(
            f"{file}: truncated or damaged: {size} bytes, its header promises {end}",
            remedy=_REMEDY,
        )
    return entries


@contextmanager
def open_tensors(file: Path, framework: str = "pt") -> Iterator[Any]:
    """Open a safetensors file with the library, to read tensors one by one.

    Args:
        file: the file.
        framework: ``pt`` or ``np``.

    Raises:
        ModelError: as ``read_header``; or the library cannot read a tensor.
    """
    read_header(file)
    with (
        library_errors(file, ModelError, _REMEDY),
        safetensors.safe_open(file, framework=framework) as handle,
    ):
        yield handle


def _parse_header(header: bytes) -> tuple[TensorEntry, ...]:
    """Return the entries of a header, sorted by name.

    Raises:
        ValueError: it is not one that safetensors reads.
    """
    text = header.decode()
    check_value_count(text, _MAX_HEADER_VALUES)
    tree = json.loads(text, object_pairs_hook=_object_of_unique_names)
    if not text.startswith("{") or not isinstance(tree, dict):
        raise ValueError("it is no object of JSON")
    metadata = tree.pop("__metadata__", None)
    if metadata is not None and not _is_text_map(metadata):
        raise ValueError("__metadata__ does not map texts to texts")
    data = 8 + len(header)
    entries = [_entry(name, fields, data) for name, fields in tree.items()]
    position = data
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.end)):
        if entry.start != position:
            what = "overlaps another tensor" if entry.start < position else "leaves a gap before it"
            raise ValueError(f"{entry.name} {what}")
        position = entry.end
    return tuple(sorted(entries, key=lambda entry: entry.name))


def _entry(name: str, fields: Any, data: int) -> TensorEntry:
    """Return the location of a tensor; ``data`` is the offset of all tensors in the file."""
    if not isinstance(fields, dict) or not {"dtype", "shape", "data_offsets"} <= fields.keys():
        raise ValueError(f"{name} lacks its dtype, shape or data_offsets")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPE_BITS:
        raise ValueError(f"{name} has the unknown dtype {dtype!r}")
    if not _is_sizes(shape) or not _is_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{name}: shape and data_offsets have to be lists of sizes")
    bits = math.prod(shape) * _DTYPE_BITS[dtype]
    if bits % 8 or offsets[1] - offsets[0] != bits // 8:
        raise ValueError(f"{name}: {dtype} {shape} does not have {offsets[1] - offsets[0]} bytes")
    return TensorEntry(name, dtype, tuple(shape), data + offsets[0], data + offsets[1])


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(
        type(size) is int and 0 <= size < _SIZE_LIMIT for size in value
    )


def _is_text_map(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _object_of_unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) != len(pairs):
        raise ValueError("a name occurs twice")
    return tree


def read_chunks(
    file: Path, entry: TensorEntry, dtype: type[np.generic]
) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the values of a tensor in order, at most 2²² at a time, as ``dtype``."""
    with open_file(file, ModelError) as handle:
        handle.seek(entry.start)
        remaining = (entry.end - entry.start) // np.dtype(dtype).itemsize
        while remaining:
            chunk = np.fromfile(handle, dtype, min(remaining, _CHUNK_VALUES))
            if not len(chunk):
                return
            remaining -= len(chunk)
            yield chunk
