"""Weights of safetensors folders as NumPy arrays, read when they are needed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from compressor.models.checkpoint.description import read_description
from compressor.models.checkpoint.layout import read_config
from compressor.models.checkpoint.safetensors_files import open_tensors
from compressor.models.checkpoint.stored_tensors import StoredTensors
from compressor.models.quantized.packed_checkpoint import PackedTensors

Array = np.ndarray[Any, Any]
TensorReader = Callable[[], Array]
_INNER_LAYER = ".layer."
"""Inserted into the names of weights that an integer layer wraps."""


def stored_tensors(folder: Path) -> dict[str, TensorReader]:
    """Return a reader for every tensor of a model; floats of any width are read as float32."""
    model = read_description(folder)
    stored = StoredTensors(model.weights, model.names)
    return {
        name.replace(_INNER_LAYER, "."): partial(_as_array, stored.read, name)
        for name in stored.entries
    }


def dequantized_tensors(folder: Path) -> dict[str, TensorReader]:
    """Return every tensor of a packed checkpoint, packed weights as the floats they stand for."""
    model = read_description(folder)
    packed = PackedTensors(StoredTensors(model.weights, model.names), read_config(folder))
    return {name: partial(_as_array, packed.read, name) for name in packed.names}


def tensors_of_file(file: Path) -> dict[str, TensorReader]:
    """Return a reader for every tensor of one safetensors file."""
    with open_tensors(file) as weights:
        names = list(weights.keys())
    return {name: partial(_as_array, partial(_read, file), name) for name in names}


def _read(file: Path, name: str) -> Tensor:
    with open_tensors(file) as weights:
        tensor: Tensor = weights.get_tensor(name)
        return tensor


def _as_array(read: Callable[[str], Tensor], name: str) -> Array:
    tensor = read(name)
    array: Array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return array
