"""Packed language models that MNN's file can hold, without weights; no torch and no ONNX."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compressor.errors import RequirementError
from compressor.models.capabilities.streamed_layers import StreamedLayers
from compressor.models.facts import ModelFacts
from compressor.models.families.transformers.layouts import LAYOUTS, is_tabulated, text_config
from compressor.models.quantized.packing_schemes import planned_grids
from compressor.models.quantized.weight_grid import QUANTIZATION_CONFIG, WeightGrid

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")
"""``model_type`` of decoders that are written: two norms, whole heads rotated, SiLU."""
BLOCK = 32
GRID_REMEDY = (
    "set `bits: 4` or `bits: 8`, and a `group_size` that is a multiple of 32, in the `awq` step"
)
_BITS = (4, 8)
_REMEDY = "`export-gguf` and `export-onnx` make files of other language models that phones run"


def decoder_fields(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a config.json with a layout, stated or by default."""
    stated = {name: value for name, value in text_config(tree).items() if value is not None}
    return {**LAYOUTS[tree["model_type"]].defaults, **stated}


def rotary_base(fields: Mapping[str, Any]) -> float:
    """Return ``rope_theta``, in its former or present place."""
    rotary = fields.get("rope_parameters") or {}
    return float(rotary.get("rope_theta") or fields.get("rope_theta") or 10_000.0)


def check_decoder(parent: ModelFacts) -> None:
    """Check everything that is known of a packed model.

    Raises:
        RequirementError: MNN cannot hold or compute it; the message names every offender.
    """
    tree = parent.config
    if tree is None:
        return
    if tree.get("model_type") not in SUPPORTED or not is_tabulated(tree):
        names = ", ".join(LAYOUTS[name].architecture for name in SUPPORTED)
        label = ", ".join(tree.get("architectures") or ()) or str(tree.get("model_type"))
        raise RequirementError(
            f"{label} is no language model that `export-mnn` writes; it writes {names}",
            remedy=_REMEDY,
        )
    if problems := list(_limits(decoder_fields(tree))):
        raise RequirementError(
            f"the graph for MNN does not compute {'; '.join(problems)}", remedy=_REMEDY
        )
    if problems := list(dict.fromkeys(_grid_problems(parent, tree))):
        listed = "".join(f"\n        {problem}" for problem in problems)
        raise RequirementError(
            f"MNN's blocks do not hold these layers:{listed}",
            remedy=GRID_REMEDY,
        )


def grid_problem(grid: WeightGrid, inputs: int) -> str | None:
    """Return why MNN's blocks do not hold a grid; None if they do."""
    if grid.bits not in _BITS:
        return f"{grid.bits} bits"
    width = grid.width(inputs)
    return f"groups of {width}" if width % BLOCK else None


def _limits(fields: Mapping[str, Any]) -> Iterator[str]:
    if (activation := fields.get("hidden_act", "silu")) != "silu":
        yield f"the activation {activation} (`hidden_act`)"
    rotary = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    kind = rotary.get("rope_type") or rotary.get("type") or "default"
    if kind != "default":
        yield f"rotary embeddings of type {kind}"
    window = fields.get("sliding_window")
    positions = fields.get("max_position_embeddings", 2048)
    if window is not None and window < positions and fields.get("use_sliding_window", True):
        yield f"a sliding window of {window} positions (`sliding_window`)"


def _grid_problems(parent: ModelFacts, tree: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each kind of layer whose grid does not fit."""
    layers = parent.capability(StreamedLayers)
    if layers is None or tree.get(QUANTIZATION_CONFIG) is None or not parent.sizes_known:
        return
    grids_of = planned_grids(tree[QUANTIZATION_CONFIG], parent.candidate_grids, layers.head_name)
    shapes = dict(layers.decoder)
    if layers.head_name is not None and not layers.is_head_tied:
        shapes[layers.head_name] = layers.head
    for name, (_, inputs) in shapes.items():
        pattern = ".".join("*" if part.isdecimal() else part for part in name.split("."))
        for grid in grids_of(name):
            if problem := grid_problem(grid, inputs):
                yield f"{pattern}: {problem}"
