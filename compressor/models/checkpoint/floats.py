"""Float values as safetensors files store them, in numpy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.errors import ModelError
from compressor.foreign_files.opening import open_file
from compressor.models.checkpoint.safetensors_files import TensorEntry, read_header

_TYPES: Mapping[str, Any] = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


def float32_from_bytes(content: bytes, dtype: str) -> NDArray[np.float32]:
    """Return stored values as float32.

    Raises:
        KeyError: the dtype is none of F64, F32, F16 and BF16.
    """
    if dtype == "BF16":
        return (np.frombuffer(content, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(content, _TYPES[dtype]).astype(np.float32)


def bytes_from_float32(values: NDArray[np.float32], dtype: str) -> bytes:
    """Return values in a dtype, rounded to the nearest, ties to even.

    Values beyond the range of the dtype become infinite.
    """
    if dtype == "BF16":
        bits = np.ascontiguousarray(values).view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return rounded.astype("<u2").tobytes()
    with np.errstate(over="ignore"):
        return values.astype(_TYPES[dtype]).tobytes()


def is_float(dtype: str) -> bool:
    """Return True for the dtypes that these functions convert."""
    return dtype == "BF16" or dtype in _TYPES


def read_entry(file: Path, entry: TensorEntry) -> bytes:
    """Return the bytes of a tensor.

    Raises:
        ModelError: the file cannot be read.
    """
    with open_file(file, ModelError) as handle:
        handle.seek(entry.start)
        return handle.read(entry.end - entry.start)


def float_tensors(file: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield name and values of each tensor of a safetensors file, sorted by name.

    Raises:
        ModelError: the file is damaged, or a tensor is not of floats.
    """
    for entry in read_header(file):
        if not is_float(entry.dtype):
            raise ModelError(
                f"{file}: {entry.name} has the dtype {entry.dtype}, expected floats",
                remedy="save it with floats",
            )
        values = float32_from_bytes(read_entry(file, entry), entry.dtype)
        yield entry.name, values.reshape(entry.shape)
