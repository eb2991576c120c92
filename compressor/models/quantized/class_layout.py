"""Quantized modules stored as their float class stores them, with the scales in a file apart.

A family with a layout of its own, such as transformers, saves its class: names, files and config
are those of the float model. So what reads that layout, such as ``from_pretrained``, loads the
float weights that the integers are rounded from. The rest is beside them::

    quantization.json         the grids, by layer
    quantization.safetensors  their scales, and the factors of smoothed inputs

A batch normalization that was folded into its layer is stored as one that only adds the bias, and
folded again on loading.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import safetensors.torch
import torch
from torch import Tensor, nn

from compressor.artifacts.errors_from_os import writing
from compressor.errors import ModelError
from compressor.models.checkpoint.safetensors_files import open_tensors
from compressor.models.quantized.fake_quantization import (
    FACTOR,
    check_layers,
    fold_norms,
    insert_grids,
)
from compressor.models.quantized.quantization import QUANTIZATION, SCALES, Quantization

_SCALE = "log2_scale"
_INNER = "layer"
"""Name of a float layer inside of the module that rounds its operands."""


def write_scales(module: nn.Module, folder: Path) -> None:
    """Write the scales of a quantized module, and the factors of its smoothed inputs.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in sorted(module.state_dict().items())
        if _is_scale(name)
    }
    with writing(folder):
        safetensors.torch.save_file(tensors, folder / SCALES)
        (folder / SCALES).chmod(0o644)  # the library makes it 0600


def fill_float_module(
    target: nn.Module, quantized: nn.Module, quantization: Quantization
) -> nn.Module:
    """Set the tensors of a float module from those of its quantized form, and return it.

    Args:
        target: a new module of the class, with normalizations that are not folded.
        quantized: the module with integer layers, folded normalizations and smoothed inputs.
        quantization: its grids.
    """
    tensors = {name: tensor.detach() for name, tensor in quantized.state_dict().items()}
    state = {
        _class_name(name, quantization): tensor
        for name, tensor in tensors.items()
        if not _is_scale(name)
    }
    for name in quantization.smoothed:
        inner = f"{name}.{_INNER}" if name in quantization.layers else name
        state[f"{name}.weight"] = state[f"{name}.weight"] * tensors[f"{inner}.{FACTOR}"]
    for name, norm in quantization.norms().items():
        _unfold_norm(state, target, name, norm)
    target.load_state_dict(state)
    return target


@torch.no_grad()
def quantized_from_float(module: nn.Module, quantization: Quantization, folder: Path) -> nn.Module:
    """Give a float module the structure and scales of a quantized one, in place, and return it.

    Args:
        module: the module with the float weights of ``folder``.
        quantization: the grids of ``folder``.
        folder: the model folder.

    Raises:
        ModelError: scales are missing, unexpected, of another shape, or not finite; or the module
            lacks layers that have grids.
    """
    check_layers(module, quantization)
    scales = _read_scales(folder)
    fold_norms(module, quantization.norms())
    for name in quantization.smoothed:
        inner = f"{name}.{_INNER}" if name in quantization.layers else name
        factor = scales.get(f"{inner}.{FACTOR}")
        if factor is not None:
            layer = cast("nn.Linear", module.get_submodule(name))
            layer.weight.data = layer.weight.data / factor
    insert_grids(module, quantization)
    _set_scales(module, scales, folder)
    return module


def _set_scales(module: nn.Module, scales: Mapping[str, Tensor], folder: Path) -> None:
    """Set the scales and factors of a module.

    Raises:
        ModelError: they do not fit.
    """
    expected = {
        name: tensor
        for name, tensor in module.state_dict(keep_vars=True).items()
        if _is_scale(name)
    }
    problems = [f"missing: {name}" for name in sorted(expected.keys() - scales.keys())]
    problems += [f"unexpected: {name}" for name in sorted(scales.keys() - expected.keys())]
    for name in sorted(expected.keys() & scales.keys()):
        value, target = scales[name], expected[name]
        if value.shape != target.shape:
            problems.append(
                f"{name}: {list(value.shape)} in the file, {list(target.shape)} in the model"
            )
        elif not bool(value.isfinite().all()):
            problems.append(f"{name}: not finite")
        else:
            target.data = value.to(target.dtype)
    if problems:
        raise ModelError(
            f"{folder / SCALES} does not hold the scales that {QUANTIZATION} describes:\n"
            + "\n".join(f"    {problem}" for problem in problems),
            remedy="take both files from the same model, or quantize again",
        )


def _read_scales(folder: Path) -> dict[str, Tensor]:
    file = folder / SCALES
    if not file.is_file():
        raise ModelError(
            f"{file} is missing: it holds the scales of {QUANTIZATION}",
            remedy="copy it too, or quantize again",
        )
    with open_tensors(file) as handle:
        return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118


def _is_scale(name: str) -> bool:
    return name.rpartition(".")[2] in (_SCALE, FACTOR)


def _class_name(name: str, quantization: Quantization) -> str:
    """Return the name that a tensor of a quantized module has in the class."""
    outer, _, last = name.rpartition(".")
    layer, _, inner = outer.rpartition(".")
    is_inside = layer in quantization.layers or layer in quantization.embeddings
    return f"{layer}.{last}" if is_inside and inner == _INNER else name


def _unfold_norm(state: dict[str, Tensor], target: nn.Module, name: str, norm_name: str) -> None:
    """Add the tensors of a normalization that leaves its input as it is, and adds the bias."""
    layer = target.get_submodule(name)
    norm = cast("nn.BatchNorm2d", target.get_submodule(norm_name))
    bias_O = state[f"{name}.bias"]
    if layer.bias is None:
        del state[f"{name}.bias"]
    else:
        bias_O = torch.zeros_like(bias_O)
    ones_O = torch.ones_like(bias_O)
    values = {
        "weight": (ones_O + norm.eps).sqrt(),  # a factor of exactly 1 when it is folded again
        "bias": bias_O,
        "running_mean": torch.zeros_like(bias_O),
        "running_var": ones_O,
        "num_batches_tracked": torch.zeros((), dtype=torch.int64),
    }
    state |= {f"{norm_name}.{key}": value for key, value in values.items()}
