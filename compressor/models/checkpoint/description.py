"""Description of a model folder: family and architecture, from config.json and file headers.

Neither torch nor the weights are loaded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from compressor.artifacts.errors_from_os import reading
from compressor.config.discovery import FAMILIES, load, names, suggestion
from compressor.errors import ModelError
from compressor.models.architecture import Architecture
from compressor.models.checkpoint.layout import CONFIG, INDEX, WEIGHTS
from compressor.models.checkpoint.safetensors_files import read_header
from compressor.models.contract import Family
from compressor.models.quantized.quantization import (
    QUANTIZATION,
    Quantization,
    read_quantization,
)

_TRANSFORMERS = "transformers"
"""Family of every config.json with a ``model_type``."""
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True, slots=True)
class ModelDescription(Architecture):
    """A model folder whose config.json and headers have been checked."""

    folder: Path

    @property
    def is_quantized(self) -> bool:
        """True if quantization.json states integer grids for the layers."""
        return (self.folder / QUANTIZATION).is_file()

    def quantization(self) -> Quantization | None:
        """Return the integer grids; None for a model without any.

        Raises:
            ModelError: quantization.json is damaged.
        """
        return read_quantization(self.folder) if self.is_quantized else None


def read_description(folder: Path) -> ModelDescription:
    """Read config.json, and check the headers of the weights against the index.

    Raises:
        ModelError: the folder cannot be opened; the message names every cause: no or broken
            config.json, an unknown family, an invalid config, pickled weights, missing or
            truncated safetensors files.
    """
    problems: list[str] = []
    remedies: list[str] = []
    _check_pickled(folder, problems, remedies)
    description = _parse_config(folder, problems, remedies)
    problems += _weight_problems(folder)
    if problems or description is None:
        raise ModelError(
            f"{folder} cannot be opened as a model:\n"
            + "\n".join(f"    {problem}" for problem in problems),
            remedy="; ".join(dict.fromkeys(remedies)) or None,
        )
    return description


def _check_pickled(folder: Path, problems: list[str], remedies: list[str]) -> None:
    pickled = sorted({path.name for pattern in _PICKLED for path in folder.glob(pattern)})
    if pickled:
        problems.append(
            f"pickled weights can run code when they are read: {', '.join(pickled)}; "
            "safetensors only"
        )
        remedies.append(
            "convert them where you trust them (`safetensors.torch.save_file(torch.load(path, "
            f"weights_only=True), {WEIGHTS!r})`) and remove the pickled files"
        )


def _parse_config(
    folder: Path, problems: list[str], remedies: list[str]
) -> ModelDescription | None:
    """Return the description; None, with problems and remedies appended, if it is invalid."""
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
        tree = {"family": _TRANSFORMERS, "config": tree}
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
            f"{CONFIG} is of version {tree['version']} of {family.name}; "
            f"the installed version is {family.version}"
        )
        remedies.append("train it again, or install the program that wrote it")
        return None
    try:
        config = family.Config.model_validate_json(json.dumps(tree.get("config", {})))
    except ValidationError as error:
        problems += [
            f"{CONFIG}: {'.'.join(map(str, ('config', *issue['loc'])))}: {issue['msg']}"
            for issue in error.errors(include_url=False)
        ]
        return None
    return ModelDescription(family, config, folder)


def _weight_problems(folder: Path) -> list[str]:
    """Return what the headers and the index show to be wrong with the weights."""
    index = folder / INDEX
    if (folder / WEIGHTS).is_file() or not index.is_file():
        return _read_names(folder / WEIGHTS)[0]
    with reading(index):
        content = index.read_bytes()
    try:
        tree = json.loads(content)
        shard_of = {str(name): str(file) for name, file in tree["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{INDEX} is no index of shards: {error!r}"]
    problems = []
    if "metadata" not in tree:
        problems.append(f"{INDEX} has no `metadata`, without which transformers does not load it")
    for shard in sorted(set(shard_of.values())):
        if Path(shard).name != shard:
            problems.append(f"{INDEX} names a shard outside the folder: {shard}")
            continue
        shard_problems, stored = _read_names(folder / shard)
        problems += [f"{shard}: {problem}" for problem in shard_problems]
        indexed = {name for name, file in shard_of.items() if file == shard}
        if not shard_problems and indexed != stored:
            differing = sorted(indexed ^ stored)
            problems.append(
                f"{INDEX} and {shard} differ in {len(differing)} tensors: "
                f"{', '.join(differing[:3])}"
            )
    return problems


def _read_names(file: Path) -> tuple[list[str], set[str]]:
    """Return the problems of a safetensors file, and the names of its tensors."""
    if not file.is_file():
        return [f"{file.name} is missing"], set()
    try:
        return [], {entry.name for entry in read_header(file)}
    except ModelError as error:
        return [error.what.removeprefix(f"{file}: ")], set()
