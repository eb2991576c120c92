"""Model folders read as files: the description, the tensors' headers, and their values, all without torch.

Layout of a family of ours::

    config.json         {"family": "autoglm-phone", "version": 1, "config": {…}}
    model.safetensors   every tensor once; of tied ones, the first name in alphabetical order

Where linear layers are packed, config.json has a ``quantization_config`` too, as checkpoints of transformers do.

A checkpoint of transformers has a ``model_type`` in its config.json, and may come in shards: ``model-00001-of-00004.safetensors``
and an index, ``model.safetensors.index.json``, of which tensor lies where.

The safetensors format (https://huggingface.co/docs/safetensors): eight bytes of length, a JSON header, then raw tensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from compressor.artifacts.errors_from_os import reading, writing
from compressor.config.discovery import FAMILIES, load, names, suggestion
from compressor.config.record import Record
from compressor.errors import ModelError, NumericalError
from compressor.models.contract import Family

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_CHECKPOINTS = "transformers"
"""The family of every config.json with a ``model_type``."""
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_MAX_HEADER_BYTES = 100_000_000
_CHUNK_VALUES = 1 << 22

# A float is NaN or infinite when all these bits are set (E4M3 has no infinity; there, they say NaN).
_EXPONENT: Mapping[str, tuple[type[np.unsignedinteger[Any]], int]] = {
    "F64": (np.uint64, 0x7FF0_0000_0000_0000),
    "F32": (np.uint32, 0x7F80_0000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
    "F8_E5M2": (np.uint8, 0x7C),
    "F8_E4M3": (np.uint8, 0x7F),
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a safetensors file: where its bytes are."""

    name: str
    dtype: str
    """As safetensors writes it: F32, BF16, I64 …"""
    shape: tuple[int, ...]
    start: int
    end: int


def read_description(folder: Path) -> tuple[str, Record]:
    """The name of a model's family and its typed config, from ``config.json``; the weights' header is checked too.

    Raises:
        ModelError: names everything that keeps the folder from being opened: no or broken config.json, an unknown family,
            a config that does not fit, pickled weights, missing or truncated safetensors.
    """
    problems: list[str] = []
    remedies: list[str] = []
    _find_pickled(folder, problems, remedies)
    described = _described(folder, problems, remedies)
    problems += _weight_problems(folder)
    if problems or described is None:
        raise ModelError(
            f"{folder} cannot be opened as a model:\n"
            + "\n".join(f"    {problem}" for problem in problems),
            remedy="; ".join(dict.fromkeys(remedies)) or None,
        )
    return described


def write_description(
    family: str, version: int, config: Record, folder: Path, more: Mapping[str, Any] | None = None
) -> None:
    """config.json of a family of ours, with ``more`` beside the architecture, such as what of it is packed."""
    description = {
        "family": family,
        "version": version,
        "config": config.model_dump(mode="json"),
        **(more or {}),
    }
    with writing(folder):
        (folder / CONFIG).write_text(
            json.dumps(description, indent=1, sort_keys=True) + "\n", encoding="utf-8"
        )


def _weight_problems(folder: Path) -> list[str]:
    """What is wrong with the weights' files, as far as their headers tell."""
    index = folder / INDEX
    if (folder / WEIGHTS).is_file() or not index.is_file():
        return _header_problems(folder / WEIGHTS)[0]
    with reading(index):
        content = index.read_bytes()
    try:
        tree = json.loads(content)
        places = {str(name): str(file) for name, file in tree["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{INDEX} is no index of shards: {error!r}"]
    problems = (
        []
        if "metadata" in tree
        else [f"{INDEX} has no `metadata`, without which transformers does not load it"]
    )
    for shard in sorted(set(places.values())):
        if Path(shard).name != shard:
            problems.append(f"{INDEX} names a shard outside the folder: {shard}")
            continue
        of_shard, held = _header_problems(folder / shard)
        problems += [f"{shard}: {problem}" for problem in of_shard]
        wanted = {name for name, file in places.items() if file == shard}
        if not of_shard and wanted != held:
            lies = sorted(wanted ^ held)
            problems.append(
                f"{INDEX} and {shard} differ in {len(lies)} tensors: {', '.join(lies[:3])}"
            )
    return problems


def _header_problems(file: Path) -> tuple[list[str], set[str]]:
    """What keeps a file from being read, and the tensors it holds."""
    if not file.is_file():
        return [f"{file.name} is missing"], set()
    try:
        return [], {entry.name for entry in read_header(file)}
    except ModelError as error:
        return [error.what.removeprefix(f"{file}: ")], set()


def _find_pickled(folder: Path, problems: list[str], remedies: list[str]) -> None:
    pickled = sorted({path.name for pattern in _PICKLED for path in folder.glob(pattern)})
    if pickled:
        problems.append(
            f"pickled weights can run code when they are read: {', '.join(pickled)}; safetensors only"
        )
        remedies.append(
            "convert them where you trust them (`safetensors.torch.save_file(torch.load(path, weights_only=True), "
            f"{WEIGHTS!r})`) and remove the pickled files"
        )


def _described(folder: Path, problems: list[str], remedies: list[str]) -> tuple[str, Record] | None:
    file = folder / CONFIG
    if not file.is_file():
        problems.append(f"{CONFIG} is missing")
        remedies.append("name the folder that holds config.json and model.safetensors")
        return None
    with reading(file):
        content = file.read_bytes()
    try:
        tree = json.loads(content)
    except ValueError as error:
        problems.append(f"{CONFIG} is not valid JSON: {error}")
        return None
    if isinstance(tree, dict) and "model_type" in tree:
        tree = {"family": _CHECKPOINTS, "config": tree}
    if not isinstance(tree, dict) or "family" not in tree:
        problems.append(
            f'{CONFIG} is neither {{"family": …, "config": {{…}}}} nor a checkpoint of transformers'
        )
        return None
    if tree["family"] not in names(FAMILIES):
        problems.append(f"{CONFIG} names the unknown family {tree['family']!r}")
        remedies.append(suggestion(str(tree["family"]), names(FAMILIES)))
        return None
    family: Family[Any] = load(FAMILIES, tree["family"])
    if tree.get("version", 1) != family.version:
        problems.append(
            f"{CONFIG} is of version {tree['version']} of {family.name}, and this program has {family.version}"
        )
        remedies.append("train it again, or install the program that wrote it")
        return None
    try:
        return family.name, family.Config.model_validate_json(json.dumps(tree.get("config", {})))
    except ValidationError as error:
        problems += [
            f"{CONFIG}: {'.'.join(map(str, ('config', *one['loc'])))}: {one['msg']}"
            for one in error.errors(include_url=False)
        ]
        return None


def read_header(file: Path) -> tuple[TensorEntry, ...]:
    """The tensors of a safetensors file, by name; their bytes are not read.

    Raises:
        ModelError: the file is truncated, or no safetensors at all.
    """
    with reading(file):
        size = file.stat().st_size
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
                raise ModelError(
                    f"{file}: truncated, or not a safetensors file", remedy="copy or save it again"
                )
            text = handle.read(length)
    data = 8 + length
    try:
        entries = tuple(
            TensorEntry(
                name,
                one["dtype"],
                tuple(one["shape"]),
                data + one["data_offsets"][0],
                data + one["data_offsets"][1],
            )
            for name, one in sorted(json.loads(text).items())
            if name != "__metadata__"
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(
            f"{file}: its header is damaged ({error!r})", remedy="copy or save it again"
        ) from error
    end = max((entry.end for entry in entries), default=data)
    if end != size:
        raise ModelError(
            f"{file}: truncated or damaged: {size} bytes, its header promises {end}",
            remedy="copy or save it again",
        )
    return entries


def check_finite(folder: Path) -> None:
    """Look at every weight of every safetensors file below ``folder``, a few megabytes at a time.

    Raises:
        NumericalError: names each tensor that holds NaN or infinity, with the count.
        ModelError: a file is truncated.
    """
    offenders = [
        f"{file.name}: {entry.name}: {count} of {math.prod(entry.shape)} values"
        for file in sorted(folder.rglob("*.safetensors"))
        for entry in read_header(file)
        if (count := _count_not_finite(file, entry))
    ]
    if offenders:
        raise NumericalError(
            f"NaN or infinity in the weights of {folder}:\n"
            + "\n".join(f"    {line}" for line in offenders),
            remedy="take a checkpoint from before training diverged; a lower learning rate may keep it from doing so",
        )


def _count_not_finite(file: Path, entry: TensorEntry) -> int:
    if entry.dtype not in _EXPONENT or entry.start == entry.end:
        return 0
    dtype, mask = _EXPONENT[entry.dtype]
    return sum(
        int(np.count_nonzero((chunk & dtype(mask)) == mask))
        for chunk in _chunks(file, entry, dtype)
    )


def _chunks(
    file: Path, entry: TensorEntry, dtype: type[np.unsignedinteger[Any]]
) -> Iterator[np.ndarray[Any, np.dtype[np.unsignedinteger[Any]]]]:
    with reading(file), file.open("rb") as handle:
        handle.seek(entry.start)
        left = (entry.end - entry.start) // np.dtype(dtype).itemsize
        while left:
            chunk = np.fromfile(handle, dtype, min(left, _CHUNK_VALUES))
            if not len(chunk):
                return
            left -= len(chunk)
            yield chunk
