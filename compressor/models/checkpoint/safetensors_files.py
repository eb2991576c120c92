"""Safetensors files read without torch: headers, and values in chunks.

The format (https://huggingface.co/docs/safetensors): eight bytes with the length of the header, a
JSON header, then the raw tensors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor.artifacts.errors_from_os import reading
from compressor.artifacts.files import LFS_POINTER
from compressor.errors import ModelError

_MAX_HEADER_BYTES = 100_000_000
_CHUNK_VALUES = 1 << 22
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

    Raises:
        ModelError: the file is truncated, damaged, or not a safetensors file.
    """
    with reading(file):
        size = file.stat().st_size
        with file.open("rb") as handle:
            start = handle.read(8)
            length = int.from_bytes(start, "little")
            if start == LFS_POINTER[:8]:  # as a length it fits no file
                raise ModelError(
                    f"{file}: a Git LFS pointer, not the file it stands for",
                    remedy="fetch the file itself: `git lfs pull`",
                )
            if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
                raise ModelError(
                    f"{file}: truncated, or not a safetensors file", remedy="copy or save it again"
                )
            header = handle.read(length)
    try:
        entries = _parse_header(header)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ModelError(
            f"{file}: its header is damaged ({error!r})", remedy="copy or save it again"
        ) from error
    end = max((entry.end for entry in entries), default=8 + length)
    if end != size:
        raise ModelError(
            f"{file}: truncated or damaged: {size} bytes, its header promises {end}",
            remedy="copy or save it again",
        )
    return entries


def _parse_header(header: bytes) -> tuple[TensorEntry, ...]:
    data = 8 + len(header)
    return tuple(
        TensorEntry(
            name,
            fields["dtype"],
            tuple(fields["shape"]),
            data + fields["data_offsets"][0],
            data + fields["data_offsets"][1],
        )
        for name, fields in sorted(json.loads(header).items())
        if name != "__metadata__"
    )


def read_chunks(
    file: Path, entry: TensorEntry, dtype: type[np.generic]
) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the values of a tensor in order, at most 2²² at a time, as ``dtype``."""
    with reading(file), file.open("rb") as handle:
        handle.seek(entry.start)
        remaining = (entry.end - entry.start) // np.dtype(dtype).itemsize
        while remaining:
            chunk = np.fromfile(handle, dtype, min(remaining, _CHUNK_VALUES))
            if not len(chunk):
                return
            remaining -= len(chunk)
            yield chunk
