"""Arrays in .npz and .safetensors files: names, types and shapes from headers, values on demand."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from compressor.artifacts.errors_from_os import reading
from compressor.errors import DataError, ModelError
from compressor.models.checkpoint.safetensors_files import read_header

Array = np.ndarray[Any, Any]
_SUFFIXES = (".npz", ".safetensors")
_SAFETENSORS_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
}
_DAMAGED = (zipfile.BadZipFile, zlib.error, ValueError, EOFError, NotImplementedError, KeyError)


@dataclass(frozen=True, slots=True)
class StoredArray:
    """An array in one file, or in several that are joined along the first axis."""

    name: str
    dtype: str
    """NumPy dtype name."""
    shape: tuple[int, ...]
    """Shape of one sample."""
    parts: tuple[tuple[Path, int], ...]
    """Files in their order, with the number of samples in each."""

    @property
    def samples(self) -> int:
        """Number of samples."""
        return sum(count for _, count in self.parts)


def read_headers(path: Path) -> dict[str, StoredArray]:
    """Return the arrays of a file, or of all files in a folder, by name.

    Raises:
        DataError: there are no such files, one is damaged or holds Python objects, or the files
            of a folder have different arrays.
    """
    arrays: dict[str, StoredArray] = {}
    for number, file in enumerate(_files(path)):
        found = {array.name: array for array in _headers(file)}
        if number == 0:
            arrays = found
            continue
        if differing := _difference(arrays, found):
            raise DataError(f"{file} does not continue the files before it: {differing}")
        arrays = {
            name: StoredArray(name, array.dtype, array.shape, array.parts + found[name].parts)
            for name, array in arrays.items()
        }
    return arrays


def read_array(array: StoredArray) -> Array:
    """Return the values of an array.

    Raises:
        DataError: a file is damaged.
    """
    parts = [_read(file, array.name) for file, _ in array.parts]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
        if not files:
            raise DataError(f"{path} holds neither .npz nor .safetensors files")
        return files
    if not path.is_file():
        raise DataError(f"{path} does not exist; expected a .npz or .safetensors file, or a folder")
    if path.suffix not in _SUFFIXES:
        raise DataError(f"{path} is neither a .npz nor a .safetensors file")
    return [path]


def _headers(file: Path) -> Iterator[StoredArray]:
    headers = list(_npz_headers(file) if file.suffix == ".npz" else _safetensors_headers(file))
    for name, dtype, shape in headers:
        if not shape:
            raise DataError(f"{file}: {name} is a single value; the first axis is the sample")
        yield StoredArray(name, dtype, shape[1:], ((file, shape[0]),))


def _npz_headers(file: Path) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    try:
        with reading(file), zipfile.ZipFile(file) as archive:
            for entry in archive.namelist():
                with archive.open(entry) as member:
                    version = npy.read_magic(member)
                    read = npy.read_array_header_1_0
                    if version != (1, 0):
                        read = npy.read_array_header_2_0
                    shape, _, dtype = read(member)
                name = entry.removesuffix(".npy")
                if dtype.hasobject:
                    raise DataError(
                        f"{file}: {name} holds Python objects, which can run code when they are "
                        "read; save arrays of numbers"
                    )
                yield name, dtype.name, shape
    except _DAMAGED as error:
        raise DataError(f"{file} is damaged, or no .npz file: {error}") from error


def _safetensors_headers(file: Path) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    try:
        entries = read_header(file)
    except ModelError as error:
        raise DataError(error.what, remedy=error.remedy) from error
    for entry in entries:
        dtype = _SAFETENSORS_DTYPES.get(entry.dtype)
        if dtype is None:
            raise DataError(f"{file}: {entry.name} is {entry.dtype}, which NumPy lacks")
        yield entry.name, dtype, entry.shape


def _read(file: Path, name: str) -> Array:
    try:
        with reading(file):
            if file.suffix == ".npz":
                with np.load(file, allow_pickle=False) as archive:
                    array: Array = archive[name]
                return array
            from safetensors import safe_open

            with safe_open(file, framework="np") as handle:
                tensor: Array = handle.get_tensor(name)
            return tensor
    except _DAMAGED as error:
        raise DataError(f"{file} is damaged: {error}") from error


def _difference(expected: dict[str, StoredArray], found: dict[str, StoredArray]) -> str | None:
    if expected.keys() != found.keys():
        return f"it has the arrays {', '.join(found)}, they have {', '.join(expected)}"
    for name, array in expected.items():
        other = found[name]
        if (array.dtype, array.shape) != (other.dtype, other.shape):
            return (
                f"a sample of {name} is {other.dtype} {list(other.shape)}, in them "
                f"{array.dtype} {list(array.shape)}"
            )
    return None
