"""Weights of safetensors folders as NumPy arrays, read when they are needed."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

Array = np.ndarray[Any, Any]
_INNER_LAYER = ".layer."
"""Inserted into the names of weights that an integer layer wraps."""


def stored_tensors(folder: Path) -> dict[str, Callable[[], Array]]:
    """Return a reader for every tensor; floats of any width are read as float32."""
    readers: dict[str, Callable[[], Array]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safetensors.safe_open(file, framework="pt") as weights:
            names = list(weights.keys())
        readers |= {name.replace(_INNER_LAYER, "."): partial(_read, file, name) for name in names}
    return readers


def dequantized_tensors(folder: Path) -> dict[str, Callable[[], Array]]:
    """Return every tensor of a packed checkpoint, packed weights as the floats they stand for."""
    from compressor.models.quantized.packed_checkpoint import read_dequantized

    config = json.loads((folder / "config.json").read_bytes())
    return {name: partial(_as_array, tensor) for name, tensor in read_dequantized(folder, config)}


def _read(file: Path, name: str) -> Array:
    with safetensors.safe_open(file, framework="pt") as weights:
        return _as_array(weights.get_tensor(name))


def _as_array(tensor: Any) -> Array:
    array: Array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return array
