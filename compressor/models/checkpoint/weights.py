"""Tensors of a module in and out of ``model.safetensors``: tied ones once, mismatches named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from compressor.artifacts.errors_from_os import writing
from compressor.errors import ModelError, StorageError
from compressor.models.checkpoint.layout import CONFIG, WEIGHTS, read_config
from compressor.models.checkpoint.stored_tensors import StoredTensors
from compressor.models.checkpoint.weight_files import read_weight_files
from compressor.models.quantized.packed_checkpoint import read_dequantized
from compressor.models.quantized.quantization import QUANTIZATION
from compressor.models.quantized.weight_grid import is_packed


def fill(module: nn.Module, folder: Path) -> nn.Module:
    """Set the tensors of a module from a folder, in the dtypes of the file, and return it.

    Where layers are packed, all floats become float32.

    Raises:
        ModelError: tensors are missing, unexpected, or of another shape or kind; the message
            names all of them.
    """
    stored = _read_stored(folder)
    groups = _group_by_storage(module)
    problems = _set_tensors(groups, stored)
    names = {name for group in groups for name in group}
    problems += [
        f"unexpected: {name} {_describe(value)}"
        for name, value in stored.items()
        if name not in names
    ]
    if problems:
        lacks_grids = not (folder / QUANTIZATION).is_file() and any(
            "log2_scale" in name for name in stored
        )
        raise ModelError(
            f"{folder / WEIGHTS} does not hold the weights that {CONFIG} describes:\n"
            + "\n".join(f"    {problem}" for problem in problems),
            remedy="copy quantization.json too: these are the weights of a quantized model"
            if lacks_grids
            else "take config.json and model.safetensors from the same model",
        )
    return module


def _set_tensors(groups: list[dict[str, Tensor]], stored: Mapping[str, Tensor]) -> list[str]:
    """Set each group of tied tensors from its stored tensor; return what does not fit."""
    problems = []
    for group in groups:
        value = next((stored[name] for name in group if name in stored), None)
        if value is None:
            name, target = next(iter(group.items()))
            problems.append(f"missing: {name} {_describe(target)}")
            continue
        for name, target in group.items():
            if (
                value.shape != target.shape
                or value.is_floating_point() != target.is_floating_point()
            ):
                problems.append(
                    f"{name}: {_describe(value)} in the file, {_describe(target)} in the model"
                )
            else:
                target.data = value
    return problems


def save_weights(module: nn.Module, folder: Path) -> None:
    """Write ``model.safetensors`` into a folder; equal weights give equal bytes.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    tensors = tensors_to_save(module)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            safetensors.torch.save_file(tensors, folder / WEIGHTS)
            (folder / WEIGHTS).chmod(0o644)  # the library makes it 0600
        except SafetensorError as error:
            raise StorageError(
                f"cannot write {folder / WEIGHTS}: {error}", remedy="free some space"
            ) from error


def tensors_to_save(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a module on the CPU, contiguous, tied ones once."""
    tensors = {}
    for group in _group_by_storage(module):
        name, value = next(iter(group.items()))
        tensor = value.detach().cpu().contiguous()
        owns_storage = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        tensors[name] = tensor if owns_storage else tensor.clone()
    return tensors


@contextmanager
def weights_on_meta() -> Iterator[None]:
    """Create parameters of modules on the device ``meta``, where they take no memory.

    Buffers, such as rotary frequencies, are created as usual.
    """
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(
                torch.empty_like(parameter, device="meta"), parameter.requires_grad
            )
        register(module, name, parameter)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def assign_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """Make tensors the parameters of a module without copying, keep ties, and return the module."""
    holders: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for submodule in module.modules():
        for name, parameter in submodule.named_parameters(recurse=False):
            holders.setdefault(parameter, []).append((submodule, name))
    module.load_state_dict(weights, assign=True)
    for (first, first_name), *tied in holders.values():
        for submodule, name in tied:
            setattr(submodule, name, getattr(first, first_name))
    return module


def _read_stored(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a folder by name, packed layers dequantized."""
    tree = read_config(folder)
    if not is_packed(tree):
        stored = StoredTensors(read_weight_files(folder))
        return dict(stored.mapped(stored.entries))
    return {
        name: value.float() if value.is_floating_point() else value
        for name, value in read_dequantized(folder, tree)
    }


def _group_by_storage(module: nn.Module) -> list[dict[str, Tensor]]:
    """Return the tensors of a module by name, tied ones in one group; sorted by name."""
    groups: dict[object, dict[str, Tensor]] = {}
    for name, value in sorted(module.state_dict(keep_vars=True).items()):
        key = (
            (value.data_ptr(), value.shape, value.stride(), value.dtype)
            if value.numel()
            else id(value)
        )
        groups.setdefault(key, {})[name] = value
    return list(groups.values())


def _describe(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
