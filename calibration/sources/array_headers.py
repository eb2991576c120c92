"""Arrays in .npz and .safetensors files: names, types and shapes from headers, values on demand."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.lib import format as npy

from compressor.errors import DataError, ModelError
from compressor.foreign_files.libraries import library_errors
from compressor.foreign_files.opening import check_file
from compressor.models.checkpoint.safetensors_files import open_tensors, read_header

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
_COPY = "copy the file again"
_LARGE_BYTES = 256 << 20
_MOST_EXPANSION = 100
"""Unpacked bytes of a large array to its packed ones, beyond which it is taken for a bomb."""


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

    @property
    def kind(self) -> str:
        """NumPy's letter for the dtype: "f" for floats; "?" for text, bytes and records."""
        try:
            return np.dtype(self.dtype).kind
        except TypeError:  # `str32`, `bytes8` and `void16` are names, and name no dtype
            return "?"


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
    needed = array.samples * math.prod(array.shape) * np.dtype(array.dtype).itemsize
    if needed > (free := psutil.virtual_memory().available):
        raise DataError(
            f"{array.parts[0][0]}: {array.name} takes {needed} bytes; {free} are free",
            remedy="save fewer samples",
        )
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
    check_file(file, DataError)
    with (
        library_errors(f"{file} is damaged, or no .npz file", DataError, _COPY),
        zipfile.ZipFile(file) as archive,
    ):
        headers = [_npy_header(file, archive, info) for info in archive.infolist()]
    yield from headers


def _npy_header(
    file: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo
) -> tuple[str, str, tuple[int, ...]]:
    """Return name, dtype and shape of one array of an archive."""
    with archive.open(info) as member:
        version = npy.read_magic(member)
        read = npy.read_array_header_1_0
        if version != (1, 0):
            read = npy.read_array_header_2_0
        shape, _, dtype = read(member)
        start = member.tell()
    name = info.filename.removesuffix(".npy")
    if dtype.hasobject:
        raise DataError(
            f"{file}: {name} holds Python objects, which can run code when they are read; save "
            "arrays of numbers"
        )
    needed, held = math.prod(shape) * dtype.itemsize, info.file_size - start
    if min(shape, default=0) < 0 or needed != held:
        raise DataError(
            f"{file}: {name} has {held} bytes; its header promises {dtype.name} {list(shape)}",
            remedy=_COPY,
        )
    if needed > _LARGE_BYTES and needed > _MOST_EXPANSION * info.compress_size:
        raise DataError(
            f"{file}: {name} expands from {info.compress_size} to {needed} bytes",
            remedy="save it with `numpy.savez`, uncompressed, if it is meant",
        )
    return name, dtype.name, shape


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
    if file.suffix == ".npz":
        check_file(file, DataError)
        with (
            library_errors(f"{file} is damaged", DataError, _COPY),
            np.load(file, allow_pickle=False) as archive,
        ):
            array: Array = archive[name]
        return array
    try:
        with open_tensors(file, "np") as handle:
            tensor: Array = handle.get_tensor(name)
    except ModelError as error:
        raise DataError(error.what, remedy=error.remedy) from error
    return tensor


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
