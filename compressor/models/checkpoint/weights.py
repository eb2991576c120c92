"""A module's tensors in and out of ``model.safetensors``: tied ones once, and every one that does not fit named."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from compressor.artifacts.errors_from_os import writing
from compressor.errors import ModelError, StorageError
from compressor.models.checkpoint.layout import CONFIG, WEIGHTS
from compressor.models.quantized.description import is_packed
from compressor.models.quantized.packed_checkpoint import dequantized
from compressor.models.quantized.quantization import QUANTIZATION


def fill(module: nn.Module, folder: Path) -> nn.Module:
    """The module with the tensors of a folder's file, with the file's dtypes; where layers are packed, all in float32.

    Raises:
        ModelError: tensors are missing, too many, or of another shape or kind: all are named.
    """
    try:
        found = _stored(folder)
    except SafetensorError as error:
        raise ModelError(f"{folder / WEIGHTS}: {error}", remedy="copy or save it again") from error
    wanted = _by_storage(module)
    problems = []
    for group in wanted:
        present = [name for name in group if name in found]
        if not present:
            name, target = next(iter(group.items()))
            problems.append(f"missing: {name} {_shown(target)}")
            continue
        value = found[present[0]]
        for name, target in group.items():
            if (
                value.shape != target.shape
                or value.is_floating_point() != target.is_floating_point()
            ):
                problems.append(
                    f"{name}: {_shown(value)} in the file, {_shown(target)} in the model"
                )
            else:
                target.data = value
    known = {name for group in wanted for name in group}
    problems += [
        f"unexpected: {name} {_shown(value)}" for name, value in found.items() if name not in known
    ]
    if problems:
        raise ModelError(
            f"{folder / WEIGHTS} does not hold the weights that {CONFIG} describes:\n"
            + "\n".join(f"    {problem}" for problem in problems),
            remedy="copy quantization.json too: these are the weights of a quantized model"
            if any("log2_scale" in name for name in found) and not (folder / QUANTIZATION).is_file()
            else "take config.json and model.safetensors from the same model",
        )
    return module


def save_weights(module: nn.Module, folder: Path) -> None:
    """Write ``model.safetensors`` into ``folder``; equal weights give equal bytes.

    Raises:
        StorageError: the disk is full, or the folder may not be written.
    """
    tensors = tensors_of(module)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            safetensors.torch.save_file(tensors, folder / WEIGHTS)
            (folder / WEIGHTS).chmod(0o644)  # the library makes it 0600
        except SafetensorError as error:
            raise StorageError(
                f"cannot write {folder / WEIGHTS}: {error}", remedy="free some space"
            ) from error


@contextmanager
def weights_on_meta() -> Iterator[None]:
    """Parameters of modules that are built inside take no memory; buffers, such as rotary frequencies, are real."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(
                torch.empty_like(parameter, device="meta"), parameter.requires_grad
            )
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def assigned(module: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """The module with these very tensors as its own, uncopied; parameters that were one stay one."""
    holders: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for part in module.modules():
        for name, one in part.named_parameters(recurse=False):
            holders.setdefault(one, []).append((part, name))
    module.load_state_dict(weights, assign=True)
    for (first, own), *others in holders.values():
        for part, name in others:
            setattr(part, name, getattr(first, own))
    return module


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """What is saved of a module: each tensor once, whole."""
    tensors = {}
    for group in _by_storage(module):
        name, value = next(iter(group.items()))
        kept = value.detach().cpu().contiguous()
        whole = kept.untyped_storage().nbytes() == kept.numel() * kept.element_size()
        tensors[name] = kept if whole else kept.clone()
    return tensors


def _stored(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder's file by name, those of packed layers as the numbers that they stand for."""
    tree = json.loads((folder / CONFIG).read_bytes())
    if not is_packed(tree):
        return safetensors.torch.load_file(folder / WEIGHTS)
    return {
        name: value.float() if value.is_floating_point() else value
        for name, value in dequantized(folder, tree)
    }


def _by_storage(module: nn.Module) -> list[dict[str, Tensor]]:
    """The module's saved tensors by name, those that are one and the same (tied weights) in one group; sorted by name."""
    groups: dict[object, dict[str, Tensor]] = {}
    for name, value in sorted(module.state_dict(keep_vars=True).items()):
        key = (
            (value.data_ptr(), value.shape, value.stride(), value.dtype)
            if value.numel()
            else id(value)
        )
        groups.setdefault(key, {})[name] = value
    return list(groups.values())


def _shown(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
