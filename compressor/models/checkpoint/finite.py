"""Scan of weights for NaN and infinity, without torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compressor.errors import NumericalError
from compressor.models.checkpoint.safetensors_files import TensorEntry, read_chunks, read_header
from compressor.models.checkpoint.weight_files import read_weight_files

# A float is NaN or infinite if all these bits are set. E4M3 has no infinity: there it is NaN.
_EXPONENT: Mapping[str, tuple[type[np.unsignedinteger[Any]], int]] = {
    "F64": (np.uint64, 0x7FF0_0000_0000_0000),
    "F32": (np.uint32, 0x7F80_0000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
    "F8_E5M2": (np.uint8, 0x7C),
    "F8_E4M3": (np.uint8, 0x7F),
}


def check_finite(folder: Path) -> None:
    """Check every weight of a model folder that counts, a few megabytes at a time.

    Raises:
        NumericalError: tensors hold NaN or infinity; the message names each with the count.
        ModelError: a file is truncated, or no file holds the weights.
    """
    files = {tensor.file for tensor in read_weight_files(folder).checked().tensors.values()}
    check_files_finite(folder, sorted(files))


def check_files_finite(folder: Path, files: Iterable[Path]) -> None:
    """Check every tensor of the safetensors files of a folder; see ``check_finite``."""
    offenders = [
        f"{file.name}: {entry.name}: {count} of {math.prod(entry.shape)} values"
        for file in files
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
