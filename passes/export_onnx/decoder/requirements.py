"""Checks of a checkpoint before its decoder's graph is built; planning uses them, so no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from compressor.graphs.decoder.adapter_slots import is_target
from compressor.graphs.decoder.block_sizes import BLOCK_SIZES, block_size, embedding_block_size
from compressor.graphs.decoder.graph_layers import graph_layers
from compressor.graphs.decoder.limits import graph_problems
from compressor.graphs.decoder.stacking_rule import SMALLEST_GROUP, is_large_group
from compressor.models.quantized.weight_grid import WeightGrid, is_packed
from passes.common.field_problems import FieldProblem
from passes.export_onnx.config import HALF, DecoderConfig, ExportOnnxConfig

GridsOf = Callable[[str], tuple[WeightGrid, ...]]
"""Linear layer by name to its grid, or to those that it may get; none if it is not packed."""
_OPERATORS = {"onnxruntime": "MatMulNBits", "portable": "DequantizeLinear"}
_BITS = {"onnxruntime": frozenset({2, 4, 8}), "portable": frozenset({4, 8})}
"""Bits of the integers that each target's operator reads."""


def decoder_problems(config: DecoderConfig, tree: Mapping[str, Any]) -> list[FieldProblem]:
    """Return the fields that do not fit a checkpoint, and what its graph cannot compute.

    Args:
        config: of the graph.
        tree: the checkpoint's config.json.
    """
    problems = [
        FieldProblem(problem.field, problem.reason, problem.remedy)
        for problem in graph_problems(tree, config.context_length, config.target)
    ]
    if config.accuracy_level is not None and not (config.int8_embeddings or is_packed(tree)):
        problems.append(
            FieldProblem(
                "decoder.accuracy_level",
                "no weights of the graph are packed",
                "remove `decoder.accuracy_level`, or pack the model with `awq` first",
            )
        )
    return problems or _slot_problems(config, tree)


def stacking_problems(config: ExportOnnxConfig, tree: Mapping[str, Any]) -> list[FieldProblem]:
    """Return a problem if ``stacked_heads`` is set and has no effect.

    Args:
        config: of the pass.
        tree: the checkpoint's config.json.
    """
    decoder, layers = config.decoder, graph_layers(tree)
    if "stacked_heads" not in decoder.model_fields_set:
        return []
    reasons = {
        "the standard operators have no attention to stack": decoder.target == "portable",
        "attention over a cache in 8 bits computes row by row": decoder.int8_kv_cache is not None,
        "attention in float16 is not stacked": config.dtype == HALF,
        f"fewer than {SMALLEST_GROUP} query heads share a key head": not is_large_group(
            layers.heads, layers.key_heads
        ),
    }
    return [
        FieldProblem("decoder.stacked_heads", reason, "remove `decoder.stacked_heads`")
        for reason, holds in reasons.items()
        if holds
    ]


def _slot_problems(config: DecoderConfig, tree: Mapping[str, Any]) -> list[FieldProblem]:
    """Return the targets of slots that match no linear layer that gets one."""
    if config.adapter_slots is None:
        return []
    groups = graph_layers(tree).groups
    modules = [name for group in groups if not group.is_expert for name in group.modules]
    has_experts = any(group.is_expert for group in groups)
    unknown = [t for t in config.adapter_slots if not any(is_target(m, [t]) for m in modules)]
    ends = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in modules))
    return [
        FieldProblem(
            "decoder.adapter_slots",
            f"{target!r} matches no linear layer of the decoder"
            + (", whose experts have no slots" if has_experts else ""),
            f"name some of {ends}, or [all-linear]",
        )
        for target in unknown
    ]


def embedding_problems(config: DecoderConfig, tree: Mapping[str, Any]) -> list[FieldProblem]:
    """Return a problem if the embedding's width cannot be divided into blocks."""
    if not config.int8_embeddings:
        return []
    hidden = graph_layers(tree).hidden
    if embedding_block_size(hidden):
        return []
    return [
        FieldProblem(
            "decoder.int8_embeddings",
            f"a hidden width of {hidden} is not a multiple of {BLOCK_SIZES[-1]}",
            "remove `decoder.int8_embeddings`",
        )
    ]


def packing_problems(
    config: DecoderConfig, tree: Mapping[str, Any], grids_of: GridsOf
) -> list[FieldProblem]:
    """Return a problem that names every packed layer whose integers the operators cannot read.

    Args:
        config: of the graph.
        tree: the checkpoint's config.json.
        grids_of: the grids of a linear layer.
    """
    unfit = _unfit_layers(tree, grids_of, _BITS[config.target])
    if not unfit:
        return []
    allowed = sorted(_BITS[config.target])
    bits = " or ".join(map(str, allowed))
    lines = "".join(f"\n        {line}" for line in unfit)
    return [
        FieldProblem(
            "decoder.target",
            f"{_OPERATORS[config.target]} cannot hold these integers:{lines}",
            f"pack with {bits} bits (with `effective_bits`, set `candidate_bits: {allowed}`), and "
            f"a group_size that is a multiple of {BLOCK_SIZES[-1]}",
        )
    ]


def _unfit_layers(tree: Mapping[str, Any], grids_of: GridsOf, bits: frozenset[int]) -> list[str]:
    """Return a line for each group of packed layers that cannot be one operand."""
    decoder = graph_layers(tree)
    head = [] if decoder.tied else _unfit_grids(grids_of(decoder.head), decoder.hidden, bits)
    lines = [f"{decoder.head}: {reason}" for reason in head]
    for group in decoder.groups:
        numbers_by_reason: dict[str, list[int]] = {}
        for number in group.layers:
            prefix = f"{decoder.stack}.{number}"
            grids = [grids_of(f"{prefix}.{name}") for name in group.modules]
            for reason in _unfit_group(grids, group.inputs, bits):
                numbers_by_reason.setdefault(reason, []).append(number)
        for reason, numbers in numbers_by_reason.items():
            layers = "*" if len(numbers) == len(group.layers) else ",".join(map(str, numbers))
            names = ", ".join(name.rpartition(".")[2] for name in group.modules)
            module = group.modules[0].rpartition(".")[0]
            place = ".".join(part for part in (decoder.stack, layers, module) if part)
            lines.append(f"{place}: {names}: {reason}")
    return lines


def _unfit_group(
    grids: Sequence[tuple[WeightGrid, ...]], inputs: int, bits: frozenset[int]
) -> Iterator[str]:
    for candidates in dict.fromkeys(grids):
        yield from _unfit_grids(candidates, inputs, bits)
    if len({*grids}) > 1:
        yield "packed in several ways, though they read one input"


def _unfit_grids(grids: Sequence[WeightGrid], inputs: int, bits: frozenset[int]) -> Iterator[str]:
    if excess := [str(grid.bits) for grid in grids if grid.bits not in bits]:
        yield f"{' or '.join(excess)} bits"
    elif grids and not block_size(grids[0], inputs):
        yield f"groups of {grids[0].width(inputs)}"
