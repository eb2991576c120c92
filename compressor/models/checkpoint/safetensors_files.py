"""Safetensors files read without torch: headers, and a scan for NaN and infinity.

The format (https://huggingface.co/docs/safetensors): eight bytes with the length of the header, a
JSON header, then the raw tensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor.artifacts.errors_from_os import reading
from compressor.errors import ModelError, NumericalError

_MAX_HEADER_BYTES = 100_000_000
_CHUNK_VALUES = 1 << 22

# A float is NaN or infinite if all these bits are set. E4M3 has no infinity: there it is NaN.
_EXPONENT: Mapping[str, tuple[type[np.unsignedinteger[Any]], int]] = {
    "F64": (np.uint64, 0x7FF0_0000_0000_0000),
    "F32": (np.uint32, 0x7F80_0000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
    "F8_E5M2": (np.uint8, 0x7C),
    "F8_E4M3": (np.uint8, 0x7F),
}


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
            length = int.from_bytes(handle.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
                raise ModelError(
                    f"{file}: truncated, or not a safetensors file", remedy="copy or save it again"
                )
            header = handle.read(length)
    try:
        entries = _parse_header(header)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
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


def check_finite(folder: Path) -> None:
    """Check every weight of every safetensors file below a folder, a few megabytes at a time.

    Raises:
        NumericalError: tensors hold NaN or infinity; the message names each with the count.
        ModelError: a file is truncated.
    """
    offenders = [
        f"{file.name}: {entry.name}: {count} of {math.prod(entry.shape)} values"
        for file in sorted(folder.rglob("*.safetensors"))
        for entry in read_header(file)
        if (count := _count_not_finite(file, entry))
    ]
    if offenders:
        raise NumericalError(
            f"NaN or infinity in the weights of {folder}:\n"
            + "\n".join(f"    {line}" for line in offenders),
            remedy="take a checkpoint from before training diverged; "
            "a lower learning rate may keep it from diverging",
        )


def _count_not_finite(file: Path, entry: TensorEntry) -> int:
    if entry.dtype not in _EXPONENT or entry.start == entry.end:
        return 0
    dtype, mask = _EXPONENT[entry.dtype]
    return sum(
        int(np.count_nonzero((chunk & dtype(mask)) == mask))
        for chunk in read_chunks(file, entry, dtype)
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
