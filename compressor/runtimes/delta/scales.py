"""Merge an (IA)³ adapter into the scales of packed weights: exact but for the scales' rounding.

(IA)³ (Liu et al. 2022, arXiv 2205.05638) multiplies outputs of linear layers, and inputs of the
last layer of an MLP, by learned factors. A packed weight is ``(integer - zero) · scale``, so a
factor of an output multiplies the scales of that output's groups, and its bias. The inputs of
``down_proj`` in a gated MLP are products with the outputs of ``up_proj``, so their factors go
there; an MLP with an activation or a norm between the two is refused. Integers and zero-points
stay, and every tensor keeps its place in the file.

Shapes: O outputs, I inputs, G groups of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compressor.artifacts.errors_from_os import writing
from compressor.artifacts.files import copy_file
from compressor.errors import ModelError, UsageError
from compressor.models.adapters.layout import ADAPTER_WEIGHTS, NAME_PREFIX
from compressor.models.checkpoint.floats import (
    bytes_from_float32,
    float32_from_bytes,
    float_tensors,
    is_float,
    read_entry,
)
from compressor.models.checkpoint.layout import read_config
from compressor.models.checkpoint.weight_files import StoredTensor, read_weight_files
from compressor.models.quantized.weight_grid import QUANTIZATION_CONFIG

LORA_FIGURES = (
    "rounding W + BA back to a 4-bit grid loses nearly all of it: on SmolLM2-135M the perplexity "
    "is 31.81 without the adapter, 24.71 with it beside the weights, 31.04 merged on the same grid "
    "and 30.30 on a new one"
)
_FACTOR = ".ia3_l"
_DOWN, _UP = "down_proj", "up_proj"
_GATED_MLP = frozenset({"gate_proj", _UP, _DOWN})
"""Layers of an MLP whose `down_proj` reads products with the outputs of `up_proj`."""
_SCALES = {"scales": 1, "weight_scale": 0}
"""Suffix of the scales in AutoAWQ's format and in compressed-tensors, to the axis of outputs."""


@dataclass(frozen=True, slots=True)
class MergeTarget:
    """A tensor that is multiplied by factors along one of its axes."""

    stored: StoredTensor
    factors: NDArray[np.float32]
    axis: int


def merge_refusal(config: Mapping[str, object], base: Path) -> UsageError | None:
    """Return why an adapter cannot be merged into a model's scales; None if it can.

    Args:
        config: PEFT's config of the adapter.
        base: folder of the model.

    Raises:
        ModelError: the config of the model cannot be read.
    """
    if not (base / "config.json").is_file() or QUANTIZATION_CONFIG not in read_config(base):
        return UsageError(
            f"{base} has no packed weights, and only (IA)³ adapters are merged, into their scales",
            remedy="name an `awq` artifact, or apply the package without --merge",
        )
    kind = str(config.get("peft_type"))
    if kind == "LORA":
        return UsageError(
            f"a LoRA adapter is not merged into packed weights: {LORA_FIGURES}",
            remedy="apply it without --merge: the adapter stays beside its base",
        )
    if kind != "IA3":
        return UsageError(
            f"adapters of the kind {kind} cannot be merged exactly; (IA)³ can",
            remedy="apply it without --merge: the adapter stays beside its base",
        )
    return None


def merge_into_scales(adapter: Path, base_files: Mapping[str, Path], out: Path) -> None:
    """Write a copy of a packed model whose scales hold an (IA)³ adapter.

    Args:
        adapter: folder of the adapter.
        base_files: files of the model by name, in one folder.
        out: an empty folder.

    Raises:
        ModelError: a factor fits no packed layer; the message names every one.
        UsageError: a product exceeds the range of the scales' dtype.
        StorageError: the disk is full, or the folder cannot be written.
    """
    folder = base_files["config.json"].parent
    changes = merge_targets(_read_factors(adapter), read_weight_files(folder).checked().tensors)
    with writing(out):
        for name, file in base_files.items():
            copy_file(file, out / name)
        for change in changes:
            target = out / change.stored.file.relative_to(folder)
            _multiply(change, target)


def _read_factors(adapter: Path) -> dict[str, NDArray[np.float32]]:
    """Return the factors by the name of their layer, with PEFT's prefix removed."""
    file = adapter / ADAPTER_WEIGHTS
    factors = {}
    for stored_name, values in float_tensors(file):
        name = stored_name.removeprefix(NAME_PREFIX)
        if not name.endswith(_FACTOR):
            raise ModelError(
                f"{file}: {stored_name} is no factor of (IA)³",
                remedy="apply the package without --merge",
            )
        factors[name.removesuffix(_FACTOR)] = values
    return factors


def merge_targets(
    factors: Mapping[str, NDArray[np.float32]], stored: Mapping[str, StoredTensor]
) -> list[MergeTarget]:
    """Return the tensors of a packed model that hold the factors of an adapter, with the factors.

    Args:
        factors: by the name of their layer: [1, I] for its inputs, [O, 1] for its outputs.
        stored: tensors of the model by name.

    Raises:
        ModelError: a factor fits no packed layer; the message names every one.
    """
    changes: list[MergeTarget] = []
    problems = []
    for layer, values in factors.items():
        # PEFT: [1, I] multiplies the inputs, [O, 1] the outputs.
        multiplies_inputs = values.ndim == 2 and values.shape[0] == 1 and values.shape[1] > 1
        target = layer
        if multiplies_inputs:
            target = _source_of_inputs(layer, stored)
        suffix = next((name for name in _SCALES if f"{target}.{name}" in stored), None)
        if suffix is None:
            problems.append(
                f"{layer}: the model has no packed layer "
                + (
                    f"{_UP}, gated by gate_proj alone, whose outputs are its inputs"
                    if multiplies_inputs
                    else "of this name"
                )
            )
            continue
        scales, axis = stored[f"{target}.{suffix}"], _SCALES[suffix]
        if not is_float(scales.entry.dtype):
            problems.append(f"{layer}: the scales of {target} have the dtype {scales.entry.dtype}")
            continue
        if values.size != scales.entry.shape[axis]:
            outputs = scales.entry.shape[axis]
            problems.append(f"{layer}: {values.size} factors for {outputs} outputs of {target}")
            continue
        changes.append(MergeTarget(scales, values.ravel(), axis))
        if (bias := stored.get(f"{target}.bias")) is not None:
            changes.append(MergeTarget(bias, values.ravel(), 0))
    if problems or not changes:
        raise ModelError(
            "the adapter cannot be merged into this model:\n"
            + "\n".join(f"    {problem}" for problem in problems or ["it has no factors"]),
            remedy="apply the package without --merge",
        )
    return changes


def _source_of_inputs(layer: str, stored: Mapping[str, StoredTensor]) -> str:
    """Return the layer whose outputs are factors of the inputs of a layer; "" if there is none."""
    parent, _, last = layer.rpartition(".")
    prefix = f"{parent}."
    layers = {n.removeprefix(prefix).partition(".")[0] for n in stored if n.startswith(prefix)}
    return f"{prefix}{_UP}" if last == _DOWN and layers == _GATED_MLP else ""


def _multiply(change: MergeTarget, file: Path) -> None:
    """Multiply one tensor of a safetensors file in its place."""
    entry = change.stored.entry
    values = float32_from_bytes(read_entry(file, entry), entry.dtype).reshape(entry.shape)
    shape = [1] * values.ndim
    shape[change.axis] = -1
    changed = bytes_from_float32(values * change.factors.reshape(shape), entry.dtype)
    if not np.isfinite(float32_from_bytes(changed, entry.dtype)).all():
        raise UsageError(
            f"{entry.name}: its product with the factors exceeds the range of {entry.dtype}",
            remedy="apply the package without --merge",
        )
    with file.open("r+b") as target:
        target.seek(entry.start)
        target.write(changed)
