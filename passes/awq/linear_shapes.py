"""Arithmetic on the linear layers of a streamed checkpoint, without its weights; no torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from compressor.models.capabilities.streamed_layers import MatrixShape, StreamedLayers
from compressor.models.quantized.packing_schemes import PACKING_SCHEMES, PackingScheme
from compressor.models.quantized.weight_grid import WeightGrid
from passes.awq.config import GROUP_SIZES, WEIGHTS_PER_CHUNK, AwqConfig
from passes.common.changed_share import ChangedShare

Shapes = Mapping[str, MatrixShape]
"""Linear layer to its outputs and inputs."""
_PROCESS_BYTES = 500 << 20
"""Memory of a process with torch, transformers and a tokenizer; measured."""
_INPUT_MATRICES = 3
"""[I, I] matrices in memory at a time: the second moments, their Cholesky factor, and the error
moments or the matrix that is factorized."""
_CHUNK_COPIES = 8
"""Tensors of the size of a rounded chunk: targets, integers, errors, gradients and others."""
MIN_WEIGHTS = 1024
"""Below this number the headers of four packed tensors take most of what packing saves."""


@dataclass(frozen=True, slots=True)
class FittedGrid:
    """Grid of a linear layer that may differ from the config's."""

    grid: WeightGrid | None
    """None if the layer stays in float."""
    reason: str | None = None
    """Why the config's grid does not fit; None if it does."""


def fit_grid(scheme: PackingScheme, grid: WeightGrid, shape: MatrixShape) -> FittedGrid:
    """Return the grid on which a layer can be packed: the given one, or one with smaller groups.

    Args:
        scheme: format of the checkpoint. One whose layers all share a grid has no smaller groups.
        grid: grid of the config.
        shape: outputs and inputs of the layer.
    """
    outputs, inputs = shape
    reasons = scheme.problems(grid, outputs, inputs)
    if not reasons:
        return FittedGrid(grid)
    smaller = [size for size in GROUP_SIZES if size < grid.group_size]
    for size in smaller if scheme.has_several_grids else ():
        candidate = grid.model_copy(update={"group_size": size})
        if not scheme.problems(candidate, outputs, inputs):
            return FittedGrid(candidate, "; ".join(reasons))
    return FittedGrid(None, "; ".join(reasons))


def fitted_grids(
    config: AwqConfig,
    grid: WeightGrid,
    shapes: Shapes,
    one_grid: Collection[str] = frozenset(),
) -> dict[str, FittedGrid]:
    """Return the grid of each linear layer by its name.

    Args:
        config: the pass's config.
        grid: grid of the config.
        shapes: the layers.
        one_grid: layers that share a group size: the largest that divides the inputs of all.
    """
    scheme = PACKING_SCHEMES[config.format]
    fitted = {}
    for name, (outputs, inputs) in shapes.items():
        if outputs * inputs < MIN_WEIGHTS:
            reason = f"{outputs * inputs} weights are too few to win anything"
            fitted[name] = FittedGrid(None, reason)
        else:
            fitted[name] = fit_grid(scheme, grid, (outputs, inputs))
    packed = [name for name, fit in fitted.items() if fit.grid is not None and name in one_grid]
    if len({fitted[name].grid for name in packed}) > 1:
        fitted |= _on_one_grid(scheme, grid, {name: shapes[name] for name in packed})
    return fitted


def _on_one_grid(scheme: PackingScheme, grid: WeightGrid, shapes: Shapes) -> dict[str, FittedGrid]:
    """Return the grid with the largest groups that fit all layers; no layers if there is none."""
    for size in GROUP_SIZES:
        candidate = grid.model_copy(update={"group_size": size})
        if size < grid.group_size and not any(
            scheme.problems(candidate, *shape) for shape in shapes.values()
        ):
            reason = "it shares the group size of layers that consumers read together with it"
            return {
                name: FittedGrid(candidate, "; ".join(scheme.problems(grid, *shape)) or reason)
                for name, shape in shapes.items()
            }
    return {}


def decoder_grids(
    config: AwqConfig, grid: WeightGrid, layers: StreamedLayers
) -> dict[str, FittedGrid]:
    """Return the grid of each linear layer of the decoder by its name."""
    return fitted_grids(config, grid, layers.decoder, layers.one_grid)


def packed_weights(config: AwqConfig, layers: StreamedLayers) -> int:
    """Return the number of weights in decoder layers that are packed."""
    fitted = decoder_grids(config, config.grids[0], layers)
    return sum(
        outputs * inputs
        for name, (outputs, inputs) in layers.decoder.items()
        if fitted[name].grid is not None
    )


def quantized_share(config: AwqConfig, layers: StreamedLayers) -> ChangedShare:
    """Return the part of a checkpoint that the pass quantizes; MACs are those of a text token."""
    parts, packed = layers.parameters, packed_weights(config, layers)
    head = parts.get("head", 0) or parts.get("embedding", 0)  # tied
    beside = {
        "the embedding": (parts.get("embedding", 0), False),
        "the head": (parts.get("head", 0), config.lm_head is not None),
        "the vision tower": (parts.get("vision", 0), config.vision is not None),
        "tensors of decoder layers": (parts.get("layers", 0) - packed, False),
    }
    quantized = packed + sum(weights for weights, chosen in beside.values() if chosen)
    floats = [(name, weights) for name, (weights, chosen) in beside.items() if not chosen]
    per_token = packed + (head if config.lm_head is not None else 0)
    outputs, inputs = layers.head
    return ChangedShare(
        changed=quantized,
        multiplied=parts.get("layers", 0) + parts.get("vision", 0) + head,
        total=parts["all"],
        macs=per_token / (layers.decoder_weights + outputs * inputs),
        largest_float=tuple(sorted((item for item in floats if item[1]), key=lambda x: -x[1])),
    )


def effective_bits(config: AwqConfig, grid: WeightGrid, layers: StreamedLayers) -> float:
    """Return the bits per packed decoder weight on a grid, scales and zero-points included."""
    fitted = decoder_grids(config, grid, layers)
    bits = weights = 0.0
    for name, (outputs, inputs) in layers.decoder.items():
        if (fit := fitted[name].grid) is not None:
            weights += outputs * inputs
            bits += outputs * inputs * fit.effective_bits(inputs)
    return bits / weights if weights else 0.0


def packed_size_bytes(config: AwqConfig, layers: StreamedLayers) -> int:
    """Return the size of the packed checkpoint; tensors that are not packed take 16 bits each."""
    packed, parts = packed_weights(config, layers), layers.parameters
    rounded_parts = [
        (parts.get(part, 0), grid.effective_bits(layers.head[1]))
        for part, grid in (("vision", config.vision), ("head", config.lm_head))
        if grid is not None
    ]
    floats = parts["all"] - packed - sum(weights for weights, _ in rounded_parts)
    bits = config.effective_bits or effective_bits(config, config.grids[0], layers)
    return (
        int(packed * bits / 8)
        + 2 * floats
        + sum(int(weights * bits / 8) for weights, bits in rounded_parts)
    )


def peak_memory_bytes(layers: StreamedLayers) -> int:
    """Return the peak memory: one decoder layer, and what rounding its largest group takes.

    Activations are read in batches and add little.
    """
    shapes: Sequence[MatrixShape] = list(layers.decoder.values())
    layer = layers.decoder_weights // layers.layers
    largest = 2 * max(outputs * inputs for outputs, inputs in shapes)
    matrices = _INPUT_MATRICES * max(inputs for _, inputs in shapes) ** 2
    chunk = min(largest, WEIGHTS_PER_CHUNK)
    return _PROCESS_BYTES + 4 * (layer + largest + matrices + _CHUNK_COPIES * chunk)
