"""Packed checkpoints of classes of transformers, their weights rounded to nearest."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
import torch
from torch import nn
from transformers import PreTrainedModel

from compressor.models.checkpoint.stored_tensors import StoredTensors
from compressor.models.checkpoint.weight_files import read_weight_files
from compressor.models.families.transformers.conversion import Conversions
from compressor.models.families.transformers.experts.sites import router_names
from compressor.models.families.transformers.experts.split import split_experts
from compressor.models.families.transformers.file_names import FileNames
from compressor.models.quantized.packed_formats import PACKED_FORMATS
from compressor.models.quantized.packed_linear import PackedLinear
from compressor.models.quantized.weight_grid import WeightGrid

SYMMETRIC = WeightGrid(bits=4, group_size=16, symmetric=True)


def nearest(weight_OI: torch.Tensor, grid: WeightGrid) -> PackedLinear:
    """Return a weight rounded to nearest on a symmetric grid."""
    outputs, inputs = weight_OI.shape
    groups = weight_OI.view(outputs, -1, grid.width(inputs))
    scales = (groups.abs().amax(dim=2) / (grid.middle - 1)).to(torch.bfloat16)
    integers = (groups / scales.float().unsqueeze(2)).round().add(grid.middle)
    return PackedLinear(
        integers.clamp(0, grid.highest).to(torch.uint8).view(outputs, inputs),
        scales,
        torch.full(scales.shape, grid.middle, dtype=torch.uint8),
        grid,
    )


def write_packed(model: PreTrainedModel, folder: Path, grid: WeightGrid = SYMMETRIC) -> list[str]:
    """Write a model with all of its layers packed, and its float form into ``folder/float``.

    The weights of ``model`` become those of the packed checkpoint.

    Returns:
        The names of the packed layers in the files.
    """
    model.save_pretrained(folder / "float")
    stored = StoredTensors(read_weight_files(folder / "float"))
    shapes = {name: entry.entry.shape for name, entry in stored.entries.items()}
    conversions = Conversions(model, shapes)
    split_experts(model)
    names = FileNames(model, conversions, shapes)
    routers = router_names(model)
    packed = {
        name: nearest(layer.weight.detach(), grid)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
        and name.count(".") > 2  # inside of a stack of layers
        and name not in routers
        and layer.in_features % grid.group_size == 0
    }
    for name, layer in packed.items():
        model.get_submodule(name).weight.data = layer.dequantize()
    tied = dict(model.all_tied_weights_keys)
    floats = {
        name: value
        for name, value in model.state_dict().items()
        if name.removesuffix(".weight") not in packed and name not in tied
    }
    plain = [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and name not in packed
    ]
    checkpoint_format = PACKED_FORMATS["compressed-tensors"]
    tensors = {name: value.contiguous() for name, value in names.tensors(floats).items()}
    layers = names.packed(packed)
    for name, layer in layers.items():
        for suffix, value in checkpoint_format.tensors(layer).items():
            tensors[f"{name}.{suffix}"] = value
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "float" / "config.json").read_bytes())
    config["quantization_config"] = checkpoint_format.config({grid: sorted(layers)}, plain)
    (folder / "config.json").write_text(json.dumps(config))
    return sorted(layers)
