"""Pickled weights written as safetensors into a new folder, without running what they contain."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from compressor.artifacts.errors_from_os import writing
from compressor.artifacts.files import copy_file
from compressor.errors import ModelError, UsageError
from compressor.foreign_files.json_files import read_json_object
from compressor.foreign_files.limits import INDEX as INDEX_KIND
from compressor.foreign_files.opening import LFS_POINTER, open_file, refuse_lfs_pointer
from compressor.models.checkpoint.companions import config_and_companions
from compressor.models.checkpoint.description import read_description
from compressor.models.checkpoint.layout import CONFIG, INDEX, WEIGHTS
from compressor.models.checkpoint.safetensors_files import read_header
from compressor.models.checkpoint.weight_files import pickled_weights, read_weight_files

_PICKLED_INDEX = "pytorch_model.bin.index.json"
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
"""Keys under which trainers save the weights beside the state of the training."""
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")
"""Prefixes that torch's DistributedDataParallel and torch.compile add to all names."""
_REFUSED_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
"""The object that torch names when it refuses to create it."""
_METADATA = {"format": "pt"}


@dataclass(frozen=True, slots=True)
class ConvertedWeights:
    """Result of a conversion."""

    folder: Path
    tensors: int
    size_bytes: int
    notes: tuple[str, ...]
    """Choices that were made, such as the key that the weights were taken from."""


def convert_pickled(
    source: Path, target: Path, progress: Callable[[str, int, int], None] = lambda *_: None
) -> ConvertedWeights:
    """Write a model folder with pickled weights as a new one with safetensors.

    Pickles are read with ``torch.load(weights_only=True)``, which creates tensors and containers
    alone and refuses everything else. ``source`` is not changed. ``target`` appears only when it is
    complete and its config.json and weights fit.

    Args:
        source: a folder with config.json and pickled weights.
        target: the folder to write, which must not exist.
        progress: called as (activity, files done, files in total).

    Raises:
        UsageError: there is nothing to convert, or ``target`` exists.
        ModelError: a file holds more than tensors, or is damaged, or the weights do not fit
            config.json.
        StorageError: the disk is full, or the folder cannot be written.
    """
    files = _files_to_convert(source, target)
    others = config_and_companions(source)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        shard_of, notes = _write_weights(files, staging, progress)
        for file in others:
            copy_file(file, staging / file.relative_to(source))
        if len(files) > 1:
            _write_index(staging, shard_of)
        read_description(staging)
        with writing(target):
            staging.chmod(0o755)
            staging.rename(target)
    except ModelError as error:
        what = error.what.replace(str(staging), str(target))
        raise ModelError(what, remedy=error.remedy) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    size = sum(path.stat().st_size for path in target.glob("*.safetensors"))
    return ConvertedWeights(target, len(shard_of), size, tuple(notes))


def _write_weights(
    files: list[Path], folder: Path, progress: Callable[[str, int, int], None]
) -> tuple[dict[str, str], list[str]]:
    """Write a safetensors file for each pickle; return the file of each tensor, and notes."""
    notes: list[str] = []
    shard_of: dict[str, str] = {}
    for number, file in enumerate(files, start=1):
        tensors, file_notes = _read_tensors(file)
        notes += file_notes
        name = WEIGHTS
        if len(files) > 1:
            name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        if repeated := sorted(tensors.keys() & shard_of.keys()):
            raise ModelError(
                f"{file.name} and {shard_of[repeated[0]]} both hold {repeated[0]}",
                remedy="copy the checkpoint again, without files of other saves",
            )
        shard_of |= dict.fromkeys(tensors, name)
        with writing(folder):
            safetensors.torch.save_file(tensors, folder / name, _METADATA)
            (folder / name).chmod(0o644)
        progress("files", number, len(files))
    return shard_of, notes


def _files_to_convert(source: Path, target: Path) -> list[Path]:
    """Return the pickles that hold the weights, in order."""
    if not source.is_dir():
        raise UsageError(f"{source} is not a folder", remedy="name the folder with config.json")
    if not (source / CONFIG).is_file():
        raise UsageError(
            f"{source} has no {CONFIG}, without which weights cannot be used",
            remedy="copy the model's config.json beside its weights",
        )
    if target.exists():
        raise UsageError(f"{target} exists", remedy="name a new folder; nothing is overwritten")
    if read_weight_files(source).tensors:
        raise UsageError(
            f"the weights of {source} are safetensors already; pickles beside them are not read",
            remedy="use the folder as it is",
        )
    index = source / _PICKLED_INDEX
    if index.is_file():
        return _indexed_files(index)
    files = pickled_weights(source)
    if len(files) == 1:
        return files
    if not files:
        raise UsageError(f"{source} holds no pickled weights", remedy="name another folder")
    raise ModelError(
        f"{source}: it is not clear which of {', '.join(file.name for file in files)} hold the "
        "weights",
        remedy=f"copy {_PICKLED_INDEX} too, or move the others away",
    )


def _indexed_files(index: Path) -> list[Path]:
    remedy = "copy it again from where the checkpoint comes from"
    names = read_json_object(index, ModelError, remedy=remedy, kind=INDEX_KIND).get("weight_map")
    if not isinstance(names, dict):
        raise ModelError(
            f"{index} is no index of shards: expected a mapping of tensors to files under "
            "`weight_map`",
            remedy=remedy,
        )
    shards = {str(name) for name in names.values()}
    files = [index.parent / shard for shard in sorted(shards)]
    outside = [file.name for file in files if file.parent != index.parent]
    if absent := outside + [file.name for file in files if not file.is_file()]:
        raise ModelError(
            f"{index} names files that are not in the folder: {', '.join(absent)}",
            remedy="copy the missing files too",
        )
    return files


def read_state_dict(file: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors of a pickle by name, and a note for each choice that was made.

    Raises:
        ModelError: it is damaged, no pickle, or holds more than tensors.
    """
    content, notes = _unwrap(_load(file), file.name)
    others = [
        f"{name} ({_type_name(value)})"
        for name, value in content.items()
        if not isinstance(name, str) or _type_name(value) != "Tensor"
    ]
    if others or not content:
        listed = ", ".join(others[:5]) or "nothing"
        raise ModelError(
            f"{file}: expected tensors by name, found {listed}",
            remedy="save the state_dict alone",
        )
    tensors = dict(sorted(content.items()))
    for prefix in _WRAPPER_PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
            notes.append(f"{file.name}: the prefix {prefix!r} of all names is left out")
    return tensors, notes


def _read_tensors(file: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Return copies of the tensors of a pickle, and notes; see ``read_state_dict``."""
    tensors, notes = read_state_dict(file)
    # Copies, since safetensors takes no shared memory; equal weights are tied again when read.
    return {name: value.contiguous().clone() for name, value in tensors.items()}, notes


def _load(file: Path) -> Any:
    """Return the content of a pickle that holds tensors and containers alone.

    Raises:
        ModelError: it is damaged, no pickle, or holds other objects.
    """
    with open_file(file, ModelError) as handle:
        refuse_lfs_pointer(handle.read(len(LFS_POINTER)), str(file), ModelError)
    if _is_safetensors(file):
        raise ModelError(
            f"{file} is a safetensors file with another name", remedy=f"rename it to {WEIGHTS}"
        )
    is_zip = zipfile.is_zipfile(file)  # older files cannot be mapped
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about the version of the pickle
            return torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # torch and pickle raise any class on damaged files
        name = _REFUSED_GLOBAL.search(str(error))
        reason = (
            f"it holds objects of {name[1]}" if name else "it is damaged, or holds other objects"
        )
        raise ModelError(
            f"{file} cannot be read as tensors alone: {reason}",
            remedy="copy it again, or save it as a state_dict where you trust it: "
            "`torch.save(model.state_dict(), path)`",
        ) from error


def _is_safetensors(file: Path) -> bool:
    try:
        return bool(read_header(file))
    except ModelError:
        return False


def _type_name(value: Any) -> str:
    """Return the type of a value; that of a tensor without dense values is not ``Tensor``."""
    if isinstance(value, Tensor):
        if value.is_quantized:
            return "quantized tensor"
        return "Tensor" if value.layout == torch.strided else "sparse tensor"
    return type(value).__name__


def _unwrap(content: Any, file_name: str) -> tuple[Mapping[str, Any], list[str]]:
    """Return the mapping of tensors, and a note for each key that it lay under."""
    notes: list[str] = []
    while isinstance(content, Mapping):
        key = next((key for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if key is None:
            return content, notes
        notes.append(f"{file_name}: the weights are those under {key!r}")
        content = content[key]
    return {"the whole file": content}, notes


def _write_index(folder: Path, shard_of: Mapping[str, str]) -> None:
    """Write the index of shards."""
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(shard_of.items()))}
    with writing(folder):
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
