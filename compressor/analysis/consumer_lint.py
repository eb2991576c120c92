"""Check packed checkpoints and adapters, of any program, for consumers: vLLM and transformers.

Of a checkpoint, config.json and the headers of the safetensors files are read, no weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from compressor.errors import UsageError
from compressor.models.adapters.layout import ADAPTER_CONFIG
from compressor.models.attention_patterns.record import ATTENTION_PATTERN
from compressor.models.checkpoint.layout import CONFIG, read_config
from compressor.models.checkpoint.weight_files import WeightFiles, read_weight_files
from compressor.models.consumers.findings import Checked, StoredLinear
from compressor.models.consumers.roles import Split, split_of
from compressor.models.consumers.targets import VllmServer
from compressor.models.consumers.transformers import check_transformers
from compressor.models.consumers.vllm import check_vllm
from compressor.models.consumers.vllm_adapters import check_vllm_adapter
from compressor.models.quantized.packing_schemes import PACKING_SCHEMES
from compressor.models.quantized.weight_grid import QUANTIZATION_CONFIG, WeightGrid, is_packed

CONSUMERS = ("vllm", "transformers")
"""Targets of `lint` that load packed checkpoints."""
_GPTQ = "gptq"
_WEIGHT = ".weight"
_PACKED_TENSOR = re.compile(r"^(.*)\.(qweight|weight_packed)$")


def lint_checkpoint(path: Path, consumer: str, server: VllmServer) -> Checked:
    """Return what a consumer does with each packed layer of a checkpoint, or with an adapter.

    Args:
        path: folder of the checkpoint or adapter, or an artifact.
        consumer: one of ``CONSUMERS``.
        server: GPUs of vLLM.

    Raises:
        UsageError: there is no packed checkpoint of transformers, or one of another method; or the
            consumer is none of adapters.
        ModelError: its description or weights cannot be read; or an adapter's base is not found,
            or another model by now.
    """
    folder = path / "model" if (path / "model").is_dir() else path
    if (folder / ADAPTER_CONFIG).is_file():
        if consumer != "vllm":
            raise UsageError(
                f"{folder} is an adapter, which PEFT loads beside any base in {consumer}",
                remedy="lint its base, or use --target vllm",
            )
        return check_vllm_adapter(folder)
    if not (folder / CONFIG).is_file():
        raise UsageError(
            f"{folder} has no {CONFIG}, so it is no checkpoint that {consumer} loads",
            remedy="name the artifact of `awq`, or the folder of a quantized checkpoint",
        )
    tree = read_config(folder)
    method = _method(folder, tree)
    layers = list(_linears(read_weight_files(folder).checked(), tree, method))
    if consumer == "transformers":
        checked = check_transformers(layers, tree, method)
    else:
        checked = check_vllm(layers, tree, method, server)
    if (folder / ATTENTION_PATTERN).is_file():
        note = f"ignores {ATTENTION_PATTERN}: all heads attend to all tokens"
        return replace(checked, notes=[*checked.notes, note])
    return checked


def _method(folder: Path, tree: Mapping[str, Any]) -> str:
    """Return the ``quant_method`` of a checkpoint that the rules cover."""
    if not is_packed(tree):
        raise UsageError(
            f"{folder}: its weights are floats, as config.json has no `{QUANTIZATION_CONFIG}`",
            remedy="quantize it with `type: awq` first",
        )
    if "model_type" not in tree:
        raise UsageError(
            f"{folder} is a model of the family {tree.get('family')!r}, not of transformers",
            remedy="only checkpoints of transformers have consumers to check for",
        )
    method = str(tree[QUANTIZATION_CONFIG].get("quant_method"))
    known = (*PACKING_SCHEMES, _GPTQ)
    if method not in known:
        raise UsageError(
            f"{folder}: its weights are quantized by {method!r}",
            remedy=f"rules exist for {', '.join(known)}",
        )
    return method


def _linears(weights: WeightFiles, tree: Mapping[str, Any], method: str) -> Iterator[StoredLinear]:
    """Yield the packed layers, and the float ones that may be fused with them."""
    shapes = {name: stored.entry.shape for name, stored in weights.tensors.items()}
    grid_of = _grid_of(tree[QUANTIZATION_CONFIG], method)
    for name, shape in shapes.items():
        if match := _PACKED_TENSOR.match(name):
            layer = match.group(1)
            grid = grid_of(layer)
            yield StoredLinear(layer, *_size(layer, shape, shapes, grid, method), grid)
        elif name.endswith(_WEIGHT) and len(shape) == 2:
            layer = name.removesuffix(_WEIGHT)
            if split_of(layer) is not Split.UNKNOWN:
                yield StoredLinear(layer, shape[0], shape[1], None)


def _grid_of(quantization: Mapping[str, Any], method: str) -> Callable[[str], WeightGrid]:
    if method != _GPTQ:
        return PACKING_SCHEMES[method].grids(quantization)
    grid = WeightGrid.model_validate(
        {
            "bits": quantization.get("bits"),
            "group_size": quantization.get("group_size", -1),
            "symmetric": bool(quantization.get("sym", True)),
        }
    )
    return lambda _: grid


def _size(
    layer: str,
    shape: tuple[int, ...],
    shapes: Mapping[str, tuple[int, ...]],
    grid: WeightGrid,
    method: str,
) -> tuple[int, int]:
    """Return the outputs and inputs of a packed layer, from the headers."""
    if method == "awq":
        return 8 * shape[1], shape[0]
    if method == _GPTQ:
        return shape[1], shape[0] * 32 // grid.bits
    inputs = shape[1] * 32 // grid.bits
    groups = shapes.get(f"{layer}.weight_scale", ())
    if grid.group_size != -1 and len(groups) == 2:
        inputs = groups[1] * grid.group_size
    return shape[0], inputs


def pattern_of(name: str) -> str:
    """Return the name of a layer with ``*`` in place of its numbers."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
