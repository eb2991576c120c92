"""Factors of a LoRA adapter, read from PEFT's layout without torch.

Shapes: I inputs, O outputs, R ranks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor.errors import ModelError
from compressor.foreign_files.json_files import read_json_object
from compressor.models.adapters.layout import ADAPTER_CONFIG, ADAPTER_WEIGHTS, NAME_PREFIX
from compressor.models.checkpoint.floats import float_tensors

Array = np.ndarray[Any, Any]
_A, _B = ".lora_A.weight", ".lora_B.weight"
_AGAIN = "copy the adapter again, or train it again"
_LISTED = 10
"""Problems that a message lists."""
_ALL_LINEAR = "all-linear"
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    # Others, such as `pissa` and `loftq`, also replace the weights of the base.
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}
"""Fields of PEFT's config to their values that leave x · A · B as it is."""
_WITHOUT_EFFECT = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_alpha",
        "lora_dropout",
        "megatron_config",
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
        "use_rslora",
    }
)
"""Fields that any value may have: they are read elsewhere, or matter only for training."""
_SELECTIONS = ("exclude_modules", "layers_to_transform")
"""Fields with which `target_modules` alone does not state the modules of an adapter."""


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
    rank, scale = _rank_and_scale(adapter, config)
    tensors = dict(float_tensors(adapter / ADAPTER_WEIGHTS))
    _check_tensors(adapter, tensors, rank)
    names = sorted(name.removesuffix(_A) for name in tensors if name.endswith(_A))
    with np.errstate(over="ignore", invalid="ignore"):
        factors = {
            name.removeprefix(NAME_PREFIX): Factors(
                np.ascontiguousarray(tensors[name + _A].T),
                np.ascontiguousarray((tensors[name + _B].T * scale).astype(np.float32)),
            )
            for name in names
        }
    if not all(np.isfinite(factor.b_RO).all() for factor in factors.values()):
        raise ModelError(
            f"{adapter}: its factors times the scale {scale:g} exceed the range of float32",
            remedy=_AGAIN,
        )
    return factors


def missing_modules(adapter: Path, modules: Iterable[str], factors: Iterable[str]) -> list[str]:
    """Return the modules that an adapter targets and has no factors for, as if it were cut.

    Args:
        adapter: a folder in PEFT's layout.
        modules: paths of linear layers of the base.
        factors: paths of the modules that the adapter has factors for.

    Raises:
        ModelError: its config is damaged.
    """
    file = adapter / ADAPTER_CONFIG
    config = read_json_object(file, ModelError, remedy=_AGAIN)
    if any(config.get(field) for field in _SELECTIONS):
        return []
    targets, known = config.get("target_modules"), set(factors)
    try:
        return [name for name in modules if name not in known and _is_target(name, targets)]
    except re.error as error:
        raise ModelError(
            f"{file}: `target_modules: {targets}` is no regular expression ({error})",
            remedy=_AGAIN,
        ) from error


def _is_target(module: str, targets: Any) -> bool:
    """Return True if PEFT matches a module with `target_modules`."""
    if isinstance(targets, str):
        return targets == _ALL_LINEAR or re.fullmatch(targets, module) is not None
    if not isinstance(targets, list):
        return False
    return any(module == target or module.endswith(f".{target}") for target in targets)


def _check_plain(adapter: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ModelError(
            f"{adapter} is an adapter of the kind {kind}: slots of a graph take LoRA alone",
            remedy="merge it into packed scales: `autoglm-compress apply --merge`"
            if kind == "IA3"
            else "train an adapter with `peft_type: LORA`",
        )
    changed = [
        f"{name}: {value}"
        for name, value in sorted(config.items())
        if name not in _WITHOUT_EFFECT and value not in _PLAIN.get(name, (None, False, [], {}))
    ]
    if changed:
        raise ModelError(
            f"{adapter} is more than a plain LoRA: {', '.join(changed)}",
            remedy="train an adapter without these fields",
        )


def _rank_and_scale(adapter: Path, config: Mapping[str, Any]) -> tuple[int, float]:
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not (
        isinstance(rank, int)
        and isinstance(alpha, int | float)
        and not isinstance(rank, bool)
        and not isinstance(alpha, bool)
        and rank > 0
        and alpha != 0
    ):
        raise ModelError(
            f"{adapter / ADAPTER_CONFIG} has `r: {rank}` and `lora_alpha: {alpha}`, expected a "
            "positive integer and a number other than 0",
            remedy=_AGAIN,
        )
    return rank, float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


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
        actual = tensor.shape[0 if is_a else 1]
        if actual != rank:
            problems.append(f"{name} has rank {actual}, and the config {rank}")
        if not np.isfinite(tensor).all():
            problems.append(f"{name} is NaN or infinite")
    if problems:
        raise ModelError(
            f"{adapter / ADAPTER_WEIGHTS} does not fit {ADAPTER_CONFIG}:\n"
            + "\n".join(f"    {problem}" for problem in problems[:_LISTED]),
            remedy=_AGAIN,
        )
