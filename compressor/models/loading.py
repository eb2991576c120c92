"""Models of families in and out of folders; ``files`` says how such a folder looks. torch is imported where it is used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.artifacts.errors_from_os import writing
from compressor.config.discovery import FAMILIES, load
from compressor.config.record import Record
from compressor.errors import ModelError, StorageError
from compressor.models.contract import Family
from compressor.models.facts import facts_of
from compressor.models.files import CONFIG, WEIGHTS, check_finite, read_description

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["check_finite", "facts_of", "load_module", "read_description", "save_module"]


def load_module(folder: Path, device: str = "cpu") -> nn.Module:
    """The model in ``folder``, in eval mode, with the dtypes of its file; tied weights stay tied.

    torch's global generator is left as it was.

    Raises:
        ModelError: as ``read_description``; or tensors are missing, too many, or of another shape or kind: all are named.
    """
    import safetensors.torch
    import torch
    from safetensors import SafetensorError

    name, config = read_description(folder)
    family: Family[Any] = load(FAMILIES, name)
    try:
        found = safetensors.torch.load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ModelError(f"{folder / WEIGHTS}: {error}", remedy="copy or save it again") from error
    with torch.random.fork_rng(devices=[]):
        module = family.build(config)
    _fill(module, found, folder)
    return module.eval().to(device)


def _fill(module: nn.Module, found: Mapping[str, Tensor], folder: Path) -> None:
    """Put the tensors of a file into a module, or name every one that does not fit."""
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
            if value.shape != target.shape or value.is_floating_point() != target.is_floating_point():
                problems.append(f"{name}: {_shown(value)} in the file, {_shown(target)} in the model")
            else:
                target.data = value
    known = {name for group in wanted for name in group}
    problems += [f"unexpected: {name} {_shown(value)}" for name, value in found.items() if name not in known]
    if problems:
        raise ModelError(
            f"{folder / WEIGHTS} does not hold the weights that {CONFIG} describes:\n"
            + "\n".join(f"    {problem}" for problem in problems),
            remedy="take config.json and model.safetensors from the same model",
        )


def save_module(module: nn.Module, family: str, config: Record, folder: Path) -> None:
    """Write ``config.json`` and ``model.safetensors`` into ``folder``; equal weights give equal bytes.

    Raises:
        StorageError: the disk is full, or the folder may not be written.
    """
    import safetensors.torch
    from safetensors import SafetensorError

    tensors = {}
    for group in _by_storage(module):
        name, value = next(iter(group.items()))
        kept = value.detach().cpu().contiguous()
        whole = kept.untyped_storage().nbytes() == kept.numel() * kept.element_size()
        tensors[name] = kept if whole else kept.clone()
    version = load(FAMILIES, family).version
    description = {"family": family, "version": version, "config": config.model_dump(mode="json")}
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            safetensors.torch.save_file(tensors, folder / WEIGHTS)
            (folder / WEIGHTS).chmod(0o644)  # the library makes it 0600
        except SafetensorError as error:
            raise StorageError(f"cannot write {folder / WEIGHTS}: {error}", remedy="free some space") from error
        (folder / CONFIG).write_text(json.dumps(description, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _by_storage(module: nn.Module) -> list[dict[str, Tensor]]:
    """The module's saved tensors by name, those that are one and the same (tied weights) in one group; sorted by name."""
    groups: dict[object, dict[str, Tensor]] = {}
    for name, value in sorted(module.state_dict(keep_vars=True).items()):
        key = (value.data_ptr(), value.shape, value.stride(), value.dtype) if value.numel() else id(value)
        groups.setdefault(key, {})[name] = value
    return list(groups.values())


def _shown(value: Tensor) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
