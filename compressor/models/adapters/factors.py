"""Factors of a LoRA adapter, read from PEFT's layout without torch.

Shapes: I inputs, O outputs, R ranks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor.errors import ModelError
from compressor.foreign_files.json_files import read_json_object
from compressor.foreign_files.libraries import library_errors
from compressor.models.adapters.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS, NAME_PREFIX

Array = np.ndarray[Any, Any]
_A, _B = ".lora_A.weight", ".lora_B.weight"
_AGAIN = "copy the adapter again, or train it again"
_LISTED = 10
"""Problems that a message lists."""
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "trainable_token_indices": (None, []),
    "target_parameters": (None, []),
    "layer_replication": (None, []),
    "alora_invocation_tokens": (None, []),
}
"""Fields of PEFT's config that change what is computed, with their values without effect."""


@dataclass(frozen=True, slots=True)
class Factors:
    """Increment of one linear layer: x · A · B."""

    a_IR: Array
    """float32."""
    b_RO: Array
    """float32, multiplied by the scale of the adapter."""


def read_factors(adapter: Path) -> dict[str, Factors]:
    """Return the factors of each target module of a LoRA adapter, by the path of the module.

    Args:
        adapter: a folder in PEFT's layout.

    Raises:
        ModelError: a file is missing or damaged; it is no plain LoRA, such as DoRA or (IA)³; or
            tensors are missing, unexpected, of another rank, NaN or infinite.
    """
    config = read_json_object(adapter / ADAPTER_CONFIG, ModelError, remedy=_AGAIN)
    _check_plain(adapter, config)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not (isinstance(rank, int) and rank > 0 and isinstance(alpha, int | float)):
        raise ModelError(f"{adapter / ADAPTER_CONFIG} has no `r` and `lora_alpha`", remedy=_AGAIN)
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    tensors = _read_tensors(adapter / ADAPTER_WEIGHTS)
    _check_tensors(adapter, tensors, rank)
    names = sorted(name.removesuffix(_A) for name in tensors if name.endswith(_A))
    return {
        name.removeprefix(NAME_PREFIX): Factors(
            np.ascontiguousarray(tensors[name + _A].T),
            np.ascontiguousarray(tensors[name + _B].T * np.float32(scale)),
        )
        for name in names
    }


def _check_plain(adapter: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ModelError(
            f"{adapter} is an adapter of the kind {kind}: slots of a graph take LoRA alone",
            remedy="merge (IA)³ into the base, whose packed scales hold it exactly",
        )
    changed = [
        f"{name}: {config[name]}"
        for name, plain in _PLAIN.items()
        if name in config and config[name] not in plain
    ]
    if changed:
        raise ModelError(
            f"{adapter} is more than a plain LoRA: {', '.join(changed)}",
            remedy="train an adapter without these fields",
        )


def _read_tensors(file: Path) -> dict[str, Array]:
    from safetensors.numpy import load_file

    with library_errors(file, ModelError, _AGAIN):
        return {name: tensor.astype(np.float32) for name, tensor in load_file(file).items()}


def _check_tensors(adapter: Path, tensors: Mapping[str, Array], rank: int) -> None:
    problems = [] if tensors else ["it has no tensors"]
    for name, tensor in sorted(tensors.items()):
        is_a, is_b = name.endswith(_A), name.endswith(_B)
        if not (is_a or is_b) or tensor.ndim != 2:
            problems.append(f"{name} {list(tensor.shape)} is no factor of a linear layer")
            continue
        other = name.removesuffix(_A) + _B if is_a else name.removesuffix(_B) + _A
        if other not in tensors:
            problems.append(f"{other} is missing")
        found = tensor.shape[0 if is_a else 1]
        if found != rank:
            problems.append(f"{name} has rank {found}, and the config {rank}")
        if not np.isfinite(tensor).all():
            problems.append(f"{name} is NaN or infinite")
    if problems:
        raise ModelError(
            f"{adapter / ADAPTER_WEIGHTS} does not fit {ADAPTER_CONFIG}:\n"
            + "\n".join(f"    {problem}" for problem in problems[:_LISTED]),
            remedy=_AGAIN,
        )
