"""Description of a model folder: family and architecture, from config.json and file headers.

Neither torch nor the weights are loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from compressor.config.discovery import FAMILIES, load, names, suggestion
from compressor.errors import ModelError
from compressor.foreign_files.json_files import read_json
from compressor.models.architecture import Architecture
from compressor.models.attention_patterns.record import (
    ATTENTION_PATTERN,
    pattern_problems,
    read_attention_pattern,
)
from compressor.models.capabilities.attention_heads import AttentionHeads
from compressor.models.checkpoint.generation_settings import read_special_tokens
from compressor.models.checkpoint.layout import CONFIG
from compressor.models.checkpoint.weight_files import WeightFiles, read_weight_files
from compressor.models.contract import UNSUPPORTED, Family
from compressor.models.quantized.quantization import (
    QUANTIZATION,
    Quantization,
    read_quantization,
)

_TRANSFORMERS = "transformers"
"""Family of every config.json with a ``model_type``."""
_CORRECT_CONFIG = f"correct {CONFIG}, or copy it again from where the model comes from"
_LISTED_PROBLEMS = 30
"""Problems that a message lists; a wrong size makes every layer misfit."""


@dataclass(frozen=True, slots=True)
class ModelDescription(Architecture):
    """A model folder whose config.json and headers have been checked."""

    folder: Path
    weights: WeightFiles
    """The weight files that count."""
    names: Mapping[str, str] | None = None
    """Name of each tensor in the module to its name in the files; None if they are the same."""
    notes: tuple[str, ...] = ()
    """Differences between config.json and the weights that were resolved."""

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
    """Read config.json, and compare it with the headers of the weight files that count.

    Raises:
        ModelError: the folder cannot be opened; the message names every cause: no or broken
            config.json, an unknown family, an invalid config, pickled weights, missing or
            truncated safetensors files, a damaged generation_config.json, an attention pattern of
            other heads or layers, and tensors that do not fit the config.
    """
    problems: list[str] = []
    remedies: list[str] = []
    architecture = _parse_config(folder, problems, remedies)
    weights = read_weight_files(folder)
    problems += weights.problems
    remedies += weights.remedies
    try:
        read_special_tokens(folder)
    except ModelError as error:
        problems.append(error.what)
        remedies += [error.remedy] if error.remedy else []
    stored = None
    if architecture is not None and not problems:
        problems += _pattern_problems(folder, architecture, remedies)
        stored = architecture.family.compare_headers(architecture.config, weights)
        if stored.problems:
            problems += stored.problems
            remedies.append("take config.json and the safetensors files from the same checkpoint")
    if problems or architecture is None or stored is None:
        raise ModelError(
            f"{folder} cannot be opened as a model:\n"
            + "\n".join(f"    {problem}" for problem in _shorten(problems)),
            remedy="; ".join(dict.fromkeys(remedies)) or None,
        )
    return ModelDescription(
        architecture.family, stored.config, folder, weights, stored.names, stored.notes
    )


def _pattern_problems(folder: Path, architecture: Architecture, remedies: list[str]) -> list[str]:
    try:
        pattern = read_attention_pattern(folder)
    except ModelError as error:
        remedies += [error.remedy] if error.remedy else []
        return [error.what]
    if pattern is None:
        return []
    problems = pattern_problems(pattern, architecture.capability(AttentionHeads))
    if problems:
        remedies.append(f"take {CONFIG} and {ATTENTION_PATTERN} from the same checkpoint")
    return problems


def _where(location: tuple[int | str, ...]) -> str:
    """Return the path of a field and a colon; nothing for the config as a whole."""
    return f"{'.'.join(map(str, location))}: " if location else ""


def _shorten(problems: list[str]) -> list[str]:
    if len(problems) <= _LISTED_PROBLEMS:
        return problems
    return [*problems[:_LISTED_PROBLEMS], f"… and {len(problems) - _LISTED_PROBLEMS} more"]


def _parse_config(folder: Path, problems: list[str], remedies: list[str]) -> Architecture | None:
    """Return the architecture; None, with problems and remedies appended, if it is invalid."""
    file = folder / CONFIG
    if not file.exists() and not file.is_symlink():
        problems.append(f"{CONFIG} is missing")
        remedies.append("name the folder that holds config.json and model.safetensors")
        return None
    try:
        tree = read_json(file, ModelError, remedy=_CORRECT_CONFIG)
    except ModelError as error:
        problems.append(error.what.replace(str(file), CONFIG, 1))
        remedies += [error.remedy] if error.remedy else []
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
            f"{CONFIG}: {_where(issue['loc'])}{issue['msg'].removeprefix('Value error, ')}"
            for issue in error.errors(include_url=False)
        ]
        if not any(issue["type"] == UNSUPPORTED for issue in error.errors()):
            remedies.append(_CORRECT_CONFIG)
        return None
    return Architecture(family, config)
