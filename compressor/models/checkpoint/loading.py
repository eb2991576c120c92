"""Modules from model folders, and quantized modules into them. torch is imported where used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from compressor.models.architecture import Architecture
from compressor.models.attention_patterns.record import read_attention_pattern
from compressor.models.capabilities.attention_heads import AttentionHeads
from compressor.models.checkpoint.description import ModelDescription, read_description
from compressor.models.checkpoint.layout import write_description
from compressor.models.quantized.quantization import (
    Quantization,
    read_quantization,
    write_quantization,
)

if TYPE_CHECKING:
    from torch import nn


def load_module(model: ModelDescription | Path, device: str = "cpu") -> nn.Module:
    """Return the module of a model folder, in eval mode.

    Heads that an ``attention_pattern.json`` restricts attend to no more than it states. Weights
    keep the dtypes of the files, tied weights stay tied, and torch's global generator keeps its
    state.

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
    _apply_attention_pattern(module, model)
    with torch.no_grad():  # some modules merge weights here, and could not be copied with a graph
        return module.eval().to(device)


def _apply_attention_pattern(module: nn.Module, model: ModelDescription) -> None:
    if (pattern := read_attention_pattern(model.folder)) is not None:
        from compressor.models.attention_patterns.attention import apply_attention_pattern

        apply_attention_pattern(module, pattern, model.require(AttentionHeads))


def _load_quantized(model: ModelDescription) -> nn.Module:
    quantization = read_quantization(model.folder)
    if model.family.has_own_layout:
        from compressor.models.quantized.class_layout import quantized_from_float

        module = model.family.load(model.config, model.folder)
        return quantized_from_float(module, quantization, model.folder)
    from compressor.models.checkpoint.weights import fill
    from compressor.models.quantized.fake_quantization import insert_fake_quantization

    module = model.family.build(model.config)
    return fill(insert_fake_quantization(module, quantization), model.folder)


def save_quantized(
    module: nn.Module,
    model: Architecture,
    quantization: Quantization,
    folder: Path,
    companions: Path | None = None,
) -> None:
    """Write the description, grids and weights of a module with integer layers.

    Args:
        module: the module.
        model: family and architecture of the float model.
        quantization: the grids.
        folder: the folder to write to.
        companions: the float model's folder, whose tokenizer and processor are copied by families
            that have such files.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    family, config = model.family, model.config
    if family.has_own_layout:
        from compressor.models.quantized.class_layout import fill_float_module, write_scales

        target = fill_float_module(family.build(config).eval(), module, quantization)
        family.save(target, config, folder, companions)
        write_scales(module, folder)
    else:
        from compressor.models.checkpoint.weights import save_weights

        save_weights(module, folder)
        write_description(family.name, family.version, config, folder)
    write_quantization(quantization, folder)
