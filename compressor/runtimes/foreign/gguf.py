"""GGUF files (llama.cpp): the header, versions 2 and 3.

The layout is documented in https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

from compressor.errors import ModelError
from compressor.foreign_files.opening import open_file
from compressor.runtimes.foreign.contract import (
    START_FROM_CHECKPOINT,
    Description,
    ForeignKind,
    first_bytes,
)
from compressor.runtimes.foreign.gguf_layout import TensorPlace, check_places
from compressor.runtimes.tensor_listing import ListedTensor

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
"""Number of a value type to its code in ``struct``."""
_MAX_COUNT = 1 << 24
"""Largest number of array entries, and of bytes of a text, that is accepted as valid."""
_MAX_ENTRIES = 1 << 17
"""Largest number of keys and of tensors."""
_LONGEST_NAME = 1 << 10
"""Bytes of a key or the name of a tensor; llama.cpp allows 64."""
_LONGEST_SHOWN = 200
"""Characters of a value that are kept."""
_LONGEST_KEPT = 8
"""Entries of an array of numbers that is kept."""
_MAX_DEPTH = 8
"""Levels of arrays in arrays."""
_TENSOR_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    6: "Q5_0",
    7: "Q5_1",
    8: "Q8_0",
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    30: "BF16",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
    40: "NVFP4",
}
"""Number of a tensor type (``ggml_type``) to its name."""


class GgufFile(ForeignKind):
    """A model of llama.cpp."""

    title = "a GGUF file (llama.cpp)"
    default_remedy = START_FROM_CHECKPOINT

    def recognizes(self, path: Path) -> bool:
        """Return True for the magic bytes."""
        return first_bytes(path, 4) == _MAGIC

    def describe(self, path: Path) -> Description:
        """Return name, architecture, context length and tensors from the header."""
        version, metadata, tensors = read_header(path)
        architecture = metadata.get("general.architecture")
        labels = {
            "name": "general.name",
            "architecture": "general.architecture",
            "context length": f"{architecture}.context_length",
            "layers": f"{architecture}.block_count",
            "tokenizer": "tokenizer.ggml.model",
        }
        rows = [("GGUF version", str(version))]
        rows += [(label, str(metadata[key])) for label, key in labels.items() if key in metadata]
        return Description(tuple(rows), tuple(tensors))


def read_header(path: Path) -> tuple[int, dict[str, Any], list[ListedTensor]]:
    """Return version, metadata without long arrays, and tensors, whose data the file has.

    Raises:
        ModelError: the file is no GGUF file, or it is truncated or damaged.
    """
    try:
        with open_file(path, ModelError) as file:
            return _read_header(file, path.stat().st_size)
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        raise ModelError(
            f"{path}: it is truncated, or its GGUF header is damaged ({error})",
            remedy="copy or download it again",
        ) from error


def _read_header(file: BinaryIO, size_bytes: int) -> tuple[int, dict[str, Any], list[ListedTensor]]:
    """See ``read_header``; any error of ``struct`` or ``ValueError`` is a damaged header."""
    file.seek(4)
    version = _scalar(file, "I")
    if version not in _VERSIONS:
        raise ValueError(f"version {version}; known are {', '.join(map(str, _VERSIONS))}")
    tensor_count, key_count = _count(file, _MAX_ENTRIES), _count(file, _MAX_ENTRIES)
    metadata = {}
    for _ in range(key_count):
        key = _string(file, _LONGEST_NAME)
        value = _value(file, _scalar(file, "I"))
        if value is not None:
            metadata[key] = value[:_LONGEST_SHOWN] if isinstance(value, str) else value
    entries = [_tensor(file) for _ in range(tensor_count)]
    check_places(
        [
            TensorPlace(tensor.name, tensor.dtype, tensor.values, (1, *tensor.shape)[-1], offset)
            for tensor, offset in entries
        ],
        file.tell(),
        metadata.get("general.alignment"),
        size_bytes,
    )
    return version, metadata, [tensor for tensor, _ in entries]


def _tensor(file: BinaryIO) -> tuple[ListedTensor, int]:
    """Return a tensor, and the offset of its data."""
    name = _string(file, _LONGEST_NAME)
    rank = _scalar(file, "I")
    if rank > 8:
        raise ValueError(f"tensor {name} has {rank} dimensions")
    shape = [_scalar(file, "Q") for _ in range(rank)]
    type_number = _scalar(file, "I")
    offset = _scalar(file, "Q")
    dtype = _TENSOR_TYPES.get(type_number, f"type {type_number}")
    return ListedTensor(name, dtype, tuple(reversed(shape))), offset


def _value(file: BinaryIO, kind: int, depth: int = 0) -> Any:
    """Return a value, a short array of numbers as a tuple; None for any other array."""
    if depth > _MAX_DEPTH:
        raise ValueError("arrays are nested too deeply")
    if kind == _STRING:
        return _string(file)
    if kind != _ARRAY:
        return _scalar(file, _code(kind))
    kind, count = _scalar(file, "I"), _count(file)
    if kind in {_STRING, _ARRAY}:
        for _ in range(count):
            _value(file, kind, depth + 1)
    elif count <= _LONGEST_KEPT:
        return tuple(_scalar(file, _code(kind)) for _ in range(count))
    else:
        file.seek(count * struct.calcsize(_code(kind)), 1)
    return None


def _code(kind: int) -> str:
    if kind not in _SCALARS:
        raise ValueError(f"unknown value type {kind}")
    return _SCALARS[kind]


def _count(file: BinaryIO, most: int = _MAX_COUNT) -> int:
    count: int = _scalar(file, "Q")
    if count > most:
        raise ValueError(f"a count of {count}")
    return count


def _string(file: BinaryIO, most: int = _MAX_COUNT) -> str:
    length = _count(file, most)
    content = file.read(length)
    if len(content) < length:
        raise ValueError("it ends within a text")
    return content.decode()


def _scalar(file: BinaryIO, code: str) -> Any:
    size = struct.calcsize(f"<{code}")
    return struct.unpack(f"<{code}", file.read(size))[0]
