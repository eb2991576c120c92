"""Checks of a checkpoint before its decoder's graph is built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from compressor.errors import RequirementError
from compressor.graphs.decoder.architecture import DecoderArchitecture, read_architecture
from compressor.graphs.decoder.block_sizes import BLOCK_SIZES, block_size
from compressor.graphs.decoder.weights import CheckpointWeights
from compressor.models.families.transformers.layouts import LM_HEAD
from compressor.models.families.transformers.linear_groups import decoder_layer_sites
from compressor.models.quantized.weight_grid import WeightGrid, is_packed
from passes.common.field_problems import FieldProblem, check_no_problems
from passes.export_onnx.config import DecoderConfig

_OPERATORS = {"onnxruntime": "MatMulNBits", "portable": "DequantizeLinear"}
_BITS = {"onnxruntime": frozenset({2, 4, 8}), "portable": frozenset({4, 8})}
"""Bits of the integers that each target's operator reads."""


def check_decoder(config: DecoderConfig, tree: Mapping[str, Any], folder: Path) -> None:
    """Check that a decoder's graph can be built, and that the operators take its integers.

    Args:
        config: of the graph.
        tree: the checkpoint's config.json.
        folder: the checkpoint.

    Raises:
        RequirementError: the architecture or packed layers do not fit, or fields have no effect;
            the message names every offender.
    """
    architecture = read_architecture(tree, config.context_length)
    if not is_packed(tree):
        _check_accuracy_level(config)
        return
    weights = CheckpointWeights(folder, tree)
    if problems := list(_unfit_layers(architecture, weights, _BITS[config.target])):
        bits = " or ".join(map(str, sorted(_BITS[config.target])))
        raise RequirementError(
            f"{_OPERATORS[config.target]} cannot hold these integers:\n"
            + "\n".join(f"    {problem}" for problem in problems),
            remedy=f"pack with {bits} bits, and a group_size that is a multiple of "
            f"{BLOCK_SIZES[-1]}",
        )


def _check_accuracy_level(config: DecoderConfig) -> None:
    """Check that a graph without packed weights has no accuracy level set for their products."""
    if config.accuracy_level is None or config.int8_embeddings:
        return
    problem = FieldProblem(
        "decoder.accuracy_level",
        "no weights of the graph are packed",
        "remove `decoder.accuracy_level`, or pack the model with `awq` first",
    )
    check_no_problems([problem])


def _unfit_layers(
    architecture: DecoderArchitecture, weights: CheckpointWeights, bits: frozenset[int]
) -> Iterator[str]:
    """Yield a line for each group of packed layers that cannot be one operand."""
    decoder = architecture.decoder
    inputs = {"attention output": decoder.heads * decoder.head_width, "ffn output": decoder.ffn}
    head = None if decoder.tied else weights.grid(LM_HEAD)
    if head is not None:
        yield from _unfit_grid([LM_HEAD], head, decoder.hidden, bits)
    for number in range(decoder.layers):
        for site in decoder_layer_sites(weights.tree):
            names = [f"{architecture.root}.layers.{number}.{name}" for name in site.linears]
            grids = {weights.grid(name) for name in names}
            for grid in grids:
                if grid is not None:
                    width = inputs.get(site.name, decoder.hidden)
                    yield from _unfit_grid(names, grid, width, bits)
            if len(grids) > 1:
                yield f"{', '.join(names)}: packed in several ways, though they read one input"


def _unfit_grid(
    names: Sequence[str], grid: WeightGrid, inputs: int, bits: frozenset[int]
) -> Iterator[str]:
    if grid.bits not in bits:
        yield f"{', '.join(names)}: {grid.bits} bits"
    elif not block_size(grid, inputs):
        yield f"{', '.join(names)}: groups of {grid.width(inputs)}"
