"""Modules from model folders, and quantized modules into them. torch is imported where used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.config.record import Record
from compressor.models.checkpoint.description import ModelDescription, read_description
from compressor.models.checkpoint.layout import write_description
from compressor.models.contract import Family
from compressor.models.quantized.quantization import (
    Quantization,
    read_quantization,
    write_quantization,
)

if TYPE_CHECKING:
    from torch import nn


def load_module(model: ModelDescription | Path, device: str = "cpu") -> nn.Module:
    """Return the module of a model folder, in eval mode.

    Weights keep the dtypes of the files, tied weights stay tied, and torch's global generator
    keeps its state.

    Args:
        model: the folder, or its description where it has been read already.
        device: the device of the parameters and buffers.

    Raises:
        ModelError: as ``read_description``; or tensors are missing, unexpected, or of another
            shape or kind: the message names all of them.
    """
    import torch

    if isinstance(model, Path):
        model = read_description(model)
    with torch.random.fork_rng(devices=[]):
        module = (
            _load_quantized(model)
            if model.is_quantized
            else model.family.load(model.config, model.folder)
        )
    return module.eval().to(device)


def _load_quantized(model: ModelDescription) -> nn.Module:
    from compressor.models.checkpoint.weights import fill
    from compressor.models.quantized.fake_quantization import insert_fake_quantization

    module = model.family.build(model.config)
    return fill(insert_fake_quantization(module, read_quantization(model.folder)), model.folder)


def save_quantized(
    module: nn.Module,
    family: Family[Any],
    config: Record,
    quantization: Quantization,
    folder: Path,
) -> None:
    """Write the description, grids and weights of a module with integer layers.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    from compressor.models.checkpoint.weights import save_weights

    save_weights(module, folder)
    write_description(family.name, family.version, config, folder)
    write_quantization(quantization, folder)
